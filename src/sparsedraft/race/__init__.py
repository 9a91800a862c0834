"""`sparsedraft race`: one prompt, the target alone and with each drafter, side by side."""
