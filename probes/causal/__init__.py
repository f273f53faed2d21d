"""Does the model use what a probe reads? Edits made by probes, each beside a control.

- `move`        causal check: move along a probe's direction, random directions beside it
- `optimise`    change an activation until any differentiable probe says otherwise; `closed_form` for linear ones
- `rewrite`     such edits inside a model, at one site or again at later ones
- `saliency`    which squares of a board a prediction hangs on
- `squares`     probes of many squares in one solve, linear and with a hidden layer
"""
