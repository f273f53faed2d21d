"""Steering: add a direction to the stream and see what the model says.

- `directions`     mean-difference directions from prompts
- `intervention`   the edit itself: which rows, which positions, how strong
- `generate`       steered generation, the same tokens with and without KV cache
- `dose_response`  score and side effects against strength, beside random directions
"""

from workbench.steering.directions import mean_difference
from workbench.steering.dose_response import dose_response
from workbench.steering.generate import Generation, generate

__all__ = ["Generation", "dose_response", "generate", "mean_difference"]
