"""The page that shows runs to a person: `lightning-al report`."""
