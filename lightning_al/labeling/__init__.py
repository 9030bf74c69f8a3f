"""Ask people: a page to label on, and tables to label in, over a queue and the file of the answers."""
