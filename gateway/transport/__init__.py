"""How bytes come from clients and go to them."""
