"""quickstart-messages: A Flower / sklearn app."""
