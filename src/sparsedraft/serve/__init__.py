"""`sparsedraft serve`: an OpenAI-compatible server whose answers are drafted by a sparse drafter."""
