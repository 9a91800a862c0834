"""What is measured: acceptance, MACs, speed-up; and the evaluation stage."""
