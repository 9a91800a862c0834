"""`sparsedraft advise`: what to run on this machine for this target, from measurements on the user's own prompts."""
