"""The recipe: one typed YAML file for the whole job."""
