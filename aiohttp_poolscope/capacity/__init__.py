"""How many connections a load needs, and how many the server has to give. Pure."""
