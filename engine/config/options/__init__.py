"""What may stand in a configuration file, as msgspec Structs; the docstrings of the fields are the texts of the JSON schema."""
