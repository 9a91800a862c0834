"""`python -m sparsedraft`, which is also what `accelerate launch --module sparsedraft` runs."""

from sparsedraft.cli import main

if __name__ == "__main__":
    main()
