"""What a query and a cycle report to loggers and to a person."""
