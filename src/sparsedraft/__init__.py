"""sparsedraft: sparse, self-distilled drafters for speculative decoding (SD²).

Throughout, p is the target model and q the drafter; K is the number of tokens drafted a step.
"""

__version__ = "0.1.0"
