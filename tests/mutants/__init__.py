"""The package broken on purpose, one mistake at a time: something must find each of them."""
