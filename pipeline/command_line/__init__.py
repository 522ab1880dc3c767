"""The command `stylemamba`: one module for each of its commands, and what they share. `app.py` puts them together."""
