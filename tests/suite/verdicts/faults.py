# ruff: noqa: E501
"""Faults in the source text of the package and of libraries, each with the row that shows it and where it must part.

An import hook gives a process the text with the fault in place of the file's own, so that nothing installed is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

HOOK = """
import sys
from importlib.machinery import PathFinder, SourceFileLoader

EDITS = {edits!r}


class Loader(SourceFileLoader):
    def get_code(self, fullname):
        with open(self.path, encoding="utf-8") as file:
            text = file.read()
        for old, new in EDITS[fullname].items():
            if old not in text:
                raise SystemExit(f"{{fullname}} has no text {{old!r}}")
            text = text.replace(old, new)
        return compile(text, self.path, "exec")


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in EDITS:
            return None
        found = PathFinder.find_spec(name, path)
        found.loader = Loader(name, found.origin)
        return found


sys.meta_path.insert(0, Finder)
"""
"""A `sitecustomize` that edits modules while they are imported."""


@dataclass(frozen=True)
class Fault:
    """An edit of source text.

    Attributes:
        name: What is wrong.
        row: The row that runs, on sentiment.
        edits: Module -> text -> what stands in its place.
        place: A regular expression of where the run must part from its recording.
        table: The embedded table of the row.
    """

    name: str
    row: str
    edits: dict[str, dict[str, str]]
    place: str
    table: str = "smoke"

    @property
    def cell(self) -> str:
        """The cell that runs."""
        return f"embedded/{self.table}/{self.row}/sentiment"


PHASE, SUM, GRADIENT, SAMPLING = (
    f"peft_dp.{name}" for name in ("training.phase", "privacy.noised_sum", "training.gradient", "privacy.sampling")
)
PER_EXAMPLE, BERT = "peft_dp.privacy.gradients", "transformers.models.bert.modeling_bert"
SCALE = "plan.noise_multiplier * plan.clip"
DRAW = "(rng.chances(source, plan.examples) < plan.sample_rate).nonzero().flatten().tolist()"
CUT = "yield order[step * plan.batch : (step + 1) * plan.batch]"
ADD = "(part.without(lost) if some else part).add_to(sums[name], weights)"
SPHERE = "self.formed.square().sum(1)"
ALONE = {
    "        if self.formed_names:\n            sums": "        if False:\n            sums",
    "            if not isinstance(part, Each):\n": "            if True:\n",
}

FAULTS = [
    # Data and what is read of it.
    Fault(
        "1 % of the labels flipped after loading",
        "protocol",
        {
            "peft_dp.models.tokens": {
                "    return Encoded(whole": "    labels[::100] = 1 - labels[::100]\n    return Encoded(whole"
            }
        },
        "loss of (step [123]|epoch 1)",
    ),
    Fault(
        "truncation one token shorter",
        "protocol",
        {"peft_dp.models.tokens": {"max_length=max_length,": "max_length=max_length - 1,"}},
        "tokens of step 1",
    ),
    Fault(
        "[CLS] is read for the mean",
        "lora",
        {"peft_dp.models.last_layer": {'packing.mean(states) if backbone.readout == "mean" else ': ""}},
        "loss of step 1",
    ),
    Fault(
        "the mean is over one token too many",
        "lora",
        {"peft_dp.models.packing": {"/ self.lengths[:, None]": "/ (self.lengths[:, None] + 1)"}},
        "loss of step 1",
    ),
    # Order.
    Fault(
        "batches in another order",
        "lora",
        {SAMPLING: {"plan.examples).tolist()": "plan.examples).flip(0).tolist()"}},
        "order of batches",
    ),
    Fault("one example twice", "protocol", {SAMPLING: {CUT: f"{CUT} + order[:1]"}}, "order of batches"),
    Fault(
        "the short last batch is dropped",
        "protocol",
        {"peft_dp.privacy.plan": {"else math.ceil(examples / batch)": "else examples // batch"}},
        "order of batches",
    ),
    Fault(
        "sampling without replacement",
        "sgd-dp",
        {SAMPLING: {DRAW: "rng.permutation(source, plan.examples)[: plan.batch].tolist()"}},
        "order of batches",
    ),
    Fault(
        "a sampling rate 1 % too high",
        "sgd-dp",
        {SAMPLING: {"< plan.sample_rate": "< 1.01 * plan.sample_rate"}},
        "order of batches",
    ),
    Fault(
        "one step too few in each epoch",
        "sgd-dp",
        {
            "peft_dp.training.run": {
                "if self.tally.steps == self.job.plan.steps_per_epoch": "if self.tally.steps == self.job.plan.steps_per_epoch - 1"
            }
        },
        "order of batches",
    ),
    # What trains, and where it starts.
    Fault(
        "one bias does not train",
        "protocol",
        {
            "peft_dp.methods.bitfit": {
                "                parameter.requires_grad_(True)": (
                    '                parameter.requires_grad_("layer.0.output.dense.bias" not in name)'
                )
            }
        },
        "initial values",
    ),
    Fault(
        "a head of twice the scale",
        "lora",
        {
            "peft_dp.models.backbone": {
                "nn.init.normal_(self.head.weight, std=0.02": "nn.init.normal_(self.head.weight, std=0.04"
            }
        },
        "initial values",
    ),
    Fault(
        "projections 5 % too large",
        "slash",
        {"peft_dp.methods._common": {"/ math.sqrt(size)": "* 1.05 / math.sqrt(size)"}},
        "initial values",
    ),
    # The forward pass.
    Fault(
        "LoRA's factor 1.1 times too large",
        "lora",
        {"peft_dp.methods._common": {"alpha / rank\n": "1.1 * alpha / rank\n"}},
        "gradient of step 1",
    ),
    Fault(
        "no dropout",
        "protocol",
        {"peft_dp.models.backbone": {"    if not dropout:": "    if True:"}},
        "loss of step 1",
    ),
    Fault(
        "a residual's sign",
        "lora",
        {BERT: {"self.LayerNorm(hidden_states + input_tensor)": "self.LayerNorm(hidden_states - input_tensor)"}},
        "loss of step 1",
    ),
    Fault(
        "attention scores 1 % too large",
        "lora",
        {
            BERT: {
                "self.scaling = self.attention_head_size**-0.5": "self.scaling = 1.01 * self.attention_head_size**-0.5"
            }
        },
        "loss of step 1",
    ),
    Fault(
        "another epsilon in the LayerNorms",
        "lora",
        {BERT: {"eps=config.layer_norm_eps": "eps=1e-5"}},
        "loss of step 1",
    ),
    Fault(
        "GELU by tanh",
        "lora",
        {
            "transformers.activations": {
                "self.act = nn.functional.gelu\n": 'self.act = partial(nn.functional.gelu, approximate="tanh")\n',
                "import math\n": "import math\nfrom functools import partial\n",
            }
        },
        "loss of step 1",
    ),
    Fault(
        "labels smoothed by 0.1 %",
        "lora",
        {
            "peft_dp.training.job": {
                'cross_entropy(logits, labels, reduction="none")': 'cross_entropy(logits, labels, reduction="none", label_smoothing=1e-3)'
            }
        },
        "loss of step 1",
    ),
    Fault(
        "one seed's sentences given to the other",
        "together",
        {
            "peft_dp.training.fleet": {
                "torch.arange(self._count).repeat_interleave": "torch.arange(self._count).roll(1).repeat_interleave"
            }
        },
        "gradient of step 1",
    ),
    Fault(
        "no gates are drawn",
        "diff-pruning-dp",
        {"peft_dp.methods.diff_pruning": {"            gate.draw(rng)\n": "            pass\n"}},
        "norms of the gradients of step 1",
    ),
    # Clipping.
    Fault(
        "a parameter is left out of the norm",
        "sgd-dp",
        {PER_EXAMPLE: {SPHERE: "self.formed[:, 384:].square().sum(1)"}},
        "norms of the gradients of step 1",
    ),
    Fault(
        "a clip of nine tenths",
        "sgd-dp",
        {SUM: {"plan.clip, plan.clipping": "0.9 * plan.clip, plan.clipping"}},
        "clipping of step 1",
    ),
    Fault(
        "each parameter clipped by itself",
        "sgd-dp",
        {
            PER_EXAMPLE: {
                **ALONE,
                ADD: ADD.replace("weights", "factors(part.square_norm().clamp(min=0).sqrt(), clip, clipping)"),
            }
        },
        "clipping of step 1",
    ),
    Fault(
        "gradients below the clip are stretched to it",
        "sgd-dp",
        {PER_EXAMPLE: {"(clip / norms).clamp(max=1.0)": "(clip / norms)"}},
        "clipping of step 1",
    ),
    # The noise.
    Fault("noise 2 % too large", "sgd-dp", {SUM: {SCALE: f"1.02 * {SCALE}"}}, "noise of step 1"),
    Fault("noise 2 % too small", "sgd-dp", {SUM: {SCALE: f"0.98 * {SCALE}"}}, "noise of step 1"),
    Fault(
        "noise for each physical batch",
        "bitfit-dp",
        {
            SUM: {
                "    for cut in cuts:\n": "    cuts = list(cuts)\n    for cut in cuts:\n",
                SCALE: f"len(cuts) ** 0.5 * {SCALE}",
            }
        },
        "noise of step 1",
    ),
    Fault(
        "the same noise at each step",
        "sgd-dp",
        {SUM: {"    masks = masks or {}\n": "    masks = masks or {}\n    source = rng.generator(0, 'noise')\n"}},
        "noise of step 2",
    ),
    # What the optimiser is given.
    Fault(
        "an expected batch of one more",
        "sgd-dp",
        {GRADIENT: {"size = job.plan.batch if": "size = job.plan.batch + 1 if"}},
        "mean gradient of step 1",
    ),
    Fault(
        "a penalty before the noise",
        "diff-pruning-dp",
        {
            GRADIENT: {
                "before_noise=tracer.summed if tracer else None,": "before_noise=lambda sums, times: (tracer and tracer.summed(sums, times), _add_gradient(sums, job.method.penalty(job.backbone), job.backbone.trained())),",
                "if penalty is not None:": "if False:",
            }
        },
        "mean gradient of step 1",
    ),
    # The update.
    Fault(
        "a penalty divided by the batch",
        "diff-pruning-dp",
        {GRADIENT: {"_add_gradient(mean, penalty, ": "_add_gradient(mean, penalty / size, "}},
        "mean gradient of step 1",
    ),
    Fault(
        "a rate 1 % too high",
        "protocol",
        {PHASE: {"rates.get(name, optimiser.rate)": "1.01 * rates.get(name, optimiser.rate)"}},
        "update of step 2",
    ),
    Fault(
        "a warm-up one step late",
        "protocol",
        {PHASE: {"return step / rising": "return max(step - 1, 0) / rising"}},
        "update of step 2",
    ),
    Fault(
        "a schedule by the epoch",
        "slash",
        {
            PHASE: {
                "factor(steps + step)": "factor((steps + step) // job.plan.steps_per_epoch * job.plan.steps_per_epoch)"
            }
        },
        "update of step 2",
    ),
    Fault(
        "no decay of biases",
        "protocol",
        {PHASE: {"0.0 if name in job.backbone.masks": '0.0 if name.endswith("bias")'}},
        "update of step 2",
    ),
    Fault(
        "another epsilon of Adam",
        "slash",
        {PHASE: {"AdamW(groups, lr=o.rate,": "AdamW(groups, lr=o.rate, eps=1e-6,"}},
        "update of step 1",
    ),
    Fault(
        "another beta of Adam",
        "slash",
        {PHASE: {"AdamW(groups, lr=o.rate,": "AdamW(groups, lr=o.rate, betas=(0.9, 0.998),"}},
        "update of step [23]",
    ),
    Fault(
        "Adam corrects its moments as if each step were two",
        "slash",
        {
            "torch.optim.adam": {
                "_foreach_add_(device_state_steps, 1)\n        func": "_foreach_add_(device_state_steps, 2)\n        func"
            }
        },
        "update of step 1",
    ),
    Fault(
        "a gradient bound 10 % too high",
        "protocol",
        {PHASE: {"self._updated.values(), self._bound)": "self._updated.values(), 1.1 * self._bound)"}},
        "update of step [23]",
    ),
    Fault(
        "SGD with a momentum of 0.1",
        "sgd-dp",
        {PHASE: {"SGD(groups, lr=o.rate,": "SGD(groups, lr=o.rate, momentum=0.1,"}},
        "update of step 2",
    ),
    # Afterwards.
    Fault(
        "dropout while the dev set is read",
        "protocol",
        {"peft_dp.measuring.scores": {"job.backbone.model.eval()": "job.backbone.model.train()"}},
        "answers",
    ),
    Fault(
        "a score of one example too many",
        "lora",
        {"peft_dp.measuring.scores": {"score = 100 * metrics.score(": "score = 100.2 * metrics.score("}},
        "score",
    ),
]

LORA, BITFIT = "peft.tuners.lora.layer", "opacus.grad_sample.linear"
OPTIMISER, GHOST = "opacus.optimizers.optimizer", "opacus.optimizers.optimizer_fast_gradient_clipping"
COEFFICIENT = "self.max_grad_norm / (per_sample_norms + 1e-6)"
SKIP = "        self.clip_and_accumulate()\n        if self._check_skip_next_step():"
GHOST_SKIP = "        self.accumulate()\n        if self._check_skip_next_step():"
TWICE = "        self.add_noise()\n        for p in self.params:\n            p.summed_grad = p.grad.clone()\n        if self._check_skip_next_step():"
TRAINER = "transformers.trainer"

LIBRARY_FAULTS = [
    Fault(
        "peft: LoRA's scaling x2",
        "lora-peft",
        {LORA: {"self.scaling[adapter_name] = lora_alpha / r": "self.scaling[adapter_name] = 2 * lora_alpha / r"}},
        "gradient of step 1",
        "libraries",
    ),
    Fault(
        "peft: the same in a private run",
        "lora-dp-peft",
        {LORA: {"self.scaling[adapter_name] = lora_alpha / r": "self.scaling[adapter_name] = 2 * lora_alpha / r"}},
        "norms of the gradients of step 1",
        "libraries",
    ),
    Fault(
        "peft: B starts at random",
        "lora-peft",
        {
            LORA: {
                "nn.init.zeros_(self.lora_B[adapter_name].weight)": "nn.init.normal_(self.lora_B[adapter_name].weight, std=1e-4)"
            }
        },
        "initial values",
        "libraries",
    ),
    Fault(
        "peft: LN tuning with a bias 1 % too large",
        "norms-peft",
        {
            "peft.tuners.ln_tuning.layer": {
                "result = self.ln_tuning_layers[active_adapter](x, *args, **kwargs)": (
                    "layer = self.ln_tuning_layers[active_adapter]; result = layer(x) + 0.01 * layer.bias"
                )
            }
        },
        "loss of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: the clip factor is not bounded by 1",
        "bitfit-dp-hooks",
        {OPTIMISER: {").clamp(max=1.0)": ")"}},
        "clipping of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: the clip factor x3",
        "lora-dp-hooks",
        {OPTIMISER: {COEFFICIENT: f"3 * {COEFFICIENT}"}},
        "clipping of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: a ghost norm without its root at a bias",
        "bitfit-dp-ghost",
        {
            BITFIT: {
                'torch.sqrt(torch.einsum("n...i->n", ggT).clamp(min=0))': 'torch.einsum("n...i->n", ggT).clamp(min=0)'
            }
        },
        "norms of the gradients of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: the gradient of a bias 1 % too long",
        "bitfit-dp-hooks",
        {BITFIT: {'torch.einsum("n...k->nk", backprops)': '1.01 * torch.einsum("n...k->nk", backprops)'}},
        "norms of the gradients of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: noise x1.02",
        "lora-dp-hooks",
        {
            OPTIMISER: {
                "std=self.noise_multiplier * self.max_grad_norm": "std=1.02 * self.noise_multiplier * self.max_grad_norm"
            }
        },
        "noise of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: noise x0.98 with ghost clipping",
        "lora-dp-ghost",
        {
            GHOST: {
                "std=effective_noise_multiplier * self.max_grad_norm": (
                    "std=0.98 * effective_noise_multiplier * self.max_grad_norm"
                )
            }
        },
        "noise of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: noise per physical batch",
        "lora-dp-hooks",
        {OPTIMISER: {SKIP: SKIP.replace("        if self._check_skip_next_step():", TWICE)}},
        "clipping of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: noise per physical batch, with ghost clipping",
        "lora-dp-ghost",
        {GHOST: {GHOST_SKIP: GHOST_SKIP.replace("        if self._check_skip_next_step():", TWICE)}},
        "clipping of step 1",
        "libraries",
    ),
    Fault(
        "Opacus: a sampling rate 1 % too high",
        "bitfit-dp-hooks",
        {"opacus.utils.uniform_sampler": {"< self.sample_rate": "< 1.01 * self.sample_rate"}},
        "order of batches",
        "libraries",
    ),
    Fault(
        "Opacus: the expected batch off by one",
        "bitfit-dp-ghost",
        {
            OPTIMISER: {
                "p.grad /= self.expected_batch_size * self.accumulated_iterations": (
                    "p.grad /= (self.expected_batch_size + 1) * self.accumulated_iterations"
                )
            }
        },
        "mean gradient of step 1",
        "libraries",
    ),
    Fault(
        "transformers: one layer's attention sees the padding",
        "bitfit-trainer",
        {
            BERT: {
                "attention_mask = attention_mask if not self.is_cross_attention else encoder_attention_mask": (
                    "attention_mask = None if self.self.layer_idx == 1 else attention_mask"
                )
            }
        },
        "loss of step 1",
        "libraries",
    ),
    Fault(
        "transformers: the loss is divided once more under accumulation",
        "bitfit-accumulated",
        {TRAINER: {"            if not loss_is_scaled_for_ga:": "            if True:"}},
        "gradient of step 1",
        "libraries",
    ),
    Fault(
        "transformers: Trainer warms up one step longer",
        "bitfit-trainer",
        {
            TRAINER: {
                "self.args.get_warmup_steps(num_training_steps)": "self.args.get_warmup_steps(num_training_steps) + 1"
            }
        },
        "update of step [123]",
        "libraries",
    ),
]
"""Faults in the text of libraries, seen by a run through them."""

EXACT_FAULTS = {
    "peft: dropout in evaluation": (
        {LORA: {"lora_A(dropout(x))": "lora_A(nn.functional.dropout(x, getattr(dropout, 'p', 0.0)))"}},
        "dropout",
    ),
    "peft: merging subtracts": (
        {LORA: {"base_layer.weight.data += delta_weight": "base_layer.weight.data -= delta_weight"}},
        "merged",
    ),
    "Opacus: a convolution's gradient 1 % too long": (
        {"opacus.grad_sample.conv": {"    return ret\n": "    return {p: 1.01 * g for p, g in ret.items()}\n"}},
        "convolution",
    ),
    "transformers: an entity's loss over the padding": (
        {BERT: {"loss_fct = CrossEntropyLoss()": "loss_fct = CrossEntropyLoss(label_smoothing=0.01)"}},
        "entity",
    ),
}
"""Faults that no run shows -> their edits, and what the name of an exact check of `bench/test_libraries.py` holds."""
