"""Step times, hours and dollars of a recipe on named hardware: the step's model applied to the catalogue's devices."""

from __future__ import annotations

from collections.abc import Sequence

from ssmke.cost.efficiency.devices import DeviceSpec
from ssmke.cost.estimates.estimate import Estimate, Interval, estimate
from ssmke.cost.prices.rent import Rent
from ssmke.errors import ConfigError
from ssmke.models.shapes import shapes_of_recipe
from ssmke.planning.choose import Option
from ssmke.planning.steptime import GB, NODE, Hardware, StepTime, flops_of_pair, ring_rate, step_time
from ssmke.planning.student import Model
from ssmke.recipes import Recipe


class Timing:
    """What ``gpus`` devices of one kind take for steps of a recipe."""

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        spec: DeviceSpec,
        *,
        gpus: int,
        text_tokens: float,
        link: str | None,
        network: str,
        mfu: Interval,
    ) -> None:
        """``link`` None: what such devices usually have. `ConfigError` if no peak is known for the model's dtype."""
        peak = spec.peak(model.dtype)
        if peak is None:
            raise ConfigError(f"no {model.dtype} peak is published for {spec.key}: give another --dtype")
        self.recipe, self.model, self.gpus, self.mfu = recipe, model, gpus, mfu
        self.text_tokens = text_tokens
        self.link, self.network = link or usual_link(spec), network
        self.shapes = shapes_of_recipe(recipe)
        memory = None if spec.bandwidth_gb_s is None else spec.bandwidth_gb_s * GB
        caching = None if spec.fp32_products is None else spec.fp32_products * 1e12
        ring = ring_rate(gpus, self.link, network)
        self.hardware = Hardware(peak * 1e12, memory, ring, caching=caching)

    def step(self, option: Option) -> StepTime:
        """The model of one step."""
        flops = flops_of_pair(
            self.shapes,
            self.text_tokens,
            accumulation=option.accumulation,
            checkpointing=self.recipe.compute.checkpointing,
        )
        pairs = option.micro_batch * option.accumulation
        return step_time(
            self.model, option.zero, option.traffic, self.hardware, flops=flops, pairs=pairs, mfu=self.mfu
        )

    def estimates(
        self, options: Sequence[Option], *, pairs: int, images: int, whence: str, epochs: int, rent: Rent
    ) -> dict[str, Estimate]:
        """Hours and dollars of ``epochs`` of ``pairs``, target cache of ``images`` included, by configuration."""
        views = self.recipe.targets.views
        cache = self.shapes.caching(images=images, pairs=pairs, views=views, text_tokens=self.text_tokens)
        rate = self.hardware.caching or self.hardware.peak
        cache_seconds = self.mfu.invert() * (cache / rate / self.gpus)
        batch = self.recipe.optim.batch_size
        if pairs < batch:
            raise ConfigError(
                f"{pairs:,} pairs ({whence}) are less than one batch of optim.batch-size {batch}"
            )
        steps = pairs // batch * epochs  # what is left of an epoch is left out, as in training
        links = f", {self.link}" if self.gpus > 1 else ""
        links += f" and {self.network} between nodes of {NODE}" if self.gpus > NODE else ""
        reasons = (
            f"{epochs} epochs of {pairs:,} pairs ({whence}), target cache included",
            f"utilisation {self.mfu.low:g} to {self.mfu.high:g} of {self.hardware.peak / 1e12:g} TFLOP/s{links}",
            "set-up, evaluation, checkpoints and waiting for data are not in it",
        )
        found = {}
        for option in options:
            assert option.time is not None
            hours = (option.time.total * float(steps) + cache_seconds) * (self.gpus / 3600)
            found[option.name] = estimate(option.name, hours, self.gpus, rent, None, reasons)
        return found


def usual_link(spec: DeviceSpec) -> str:
    """What connects such GPUs within a node, by their form: SXM boards have NVLink."""
    newer = spec.accelerator.startswith(("H", "B", "GH"))
    if spec.form[:3].casefold() == "sxm":
        return "nvlink4" if newer else "nvlink3"
    return "pcie5" if newer else "pcie4"
