"""The largest numbers that the command line and recipes accept: more than anything real needs."""

SEED = 2**63 - 1  # the largest that torch and numpy take
TOKENS = 2**44  # in a budget: as many as the largest models were trained on
LENGTH = 2**22  # tokens of a text
VOCABULARY = 2**24  # tokens of a tokenizer
PROMPTS = 10**9
CONVERSATIONS = 10**6  # that magpie writes into one folder: their prompts are in memory at once
STEPS = 10**9
ROWS = 2**16  # at once: in a batch, or in an optimizer step
SAMPLES = 10_000  # answers to one prompt
LIKELIEST = 4096  # tokens that are stored with each token of an answer
DRAFTED = 1024  # tokens a step: K, and the branching of a tree of drafts
LAYERS = 10_000
TEMPERATURE = 100.0  # a drafter's, in units of the target's
CALLS = 4096  # to a server at once, each in its thread
WORKERS = 4096
RETRIES = 100_000
