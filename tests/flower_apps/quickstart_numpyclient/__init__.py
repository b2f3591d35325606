"""quickstart-numpyclient: A Flower / sklearn app."""
