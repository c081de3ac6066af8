"""What trains: one file, one method; the folder is the registry.

A method's file has three names:

- `Config`: a frozen dataclass of its settings, checked at birth;
- `EXAMPLE`: a small valid `Config`, on which the contract tests run;
- `install(backbone, config, rng)`: from the pretrained backbone, all frozen
  but the head, to one in which just what the method trains requires a
  gradient. New parameters are drawn from `rng` alone.

A method that does not start as the pretrained backbone says why in
`STARTS_ELSEWHERE`. It may have more, which the training loop uses where they
are there:

- `phases(backbone, config, epochs)`: checks `epochs` at once (ValueError), then
  gives an iterator over the epochs of each phase, which add up to `epochs`;
  before each it arranges what trains (`gradual.py`). `install` arranges what
  the first one trains. Values may decide what parameters, buffers and masks
  hold, not which there are: a killed run is arranged again before it is filled;
- `settled(backbone, config)`: number of lowest layers that no phase trains, so
  that they are computed once for all phases;
- `begin_step(backbone, rng)`: draws what all examples of a step share; `rng` is
  the run's stream of noise (`diff_pruning.py`, as for the next two);
- `penalty(backbone, config)`: a term of the loss that does not look at the data;
- `rates(backbone, config)`: name of a trained parameter -> its peak learning
  rate, where it is not the optimiser's;
- `release(backbone, gradients)`: from the mean gradient of what trains, noise
  included, that of what the optimiser updates, where `install` names other
  parameters in `backbone.updates` (`rgp.py`). It looks at nothing else of the data.

To add one: copy `bitfit.py`, change the three, and add a row to
`expected/embedded/smoke.json`. Nothing else needs to know.
"""
