"""Around every step of an optimizer: the sparsity penalty and truncation before it, fading after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from earlyworm.errors import SearchError
from earlyworm.inputs import unwrap_optimizer
from earlyworm.search.truncation import fading_factor, truncate_, truncation_factor
from earlyworm.units.groups import Units, named_tensors


class _StaticGate(NamedTuple):
    """A gate of static units: where it is kept, and what gradient and gate are multiplied by.

    Of single weights these factors would be as large as the gate; they are made when they are used, one at a time.
    """

    gate: Tensor
    kept: Tensor
    truncation: Tensor | None
    fading: Tensor | None


class GradientHook:
    """Acts on the gates of units and on their gradients, once per optimizer step.

    A hook on the backward pass would act once per micro-batch; this one acts on the gradients that the step uses,
    after accumulation, unscaling, clipping and the exchange between processes. An optimizer that is called with a
    closure computes its gradients inside the step, so there it acts after each call of the closure. A step inside of
    a step of the same gates (a subclass whose `step` calls that of its base, or an optimizer that calls another) is one
    step.

    Args:
        model: The model that is trained.
        units: Its units.
        penalty: Network slimming: `penalty * sign(scale)` is added to the gradient of every scale.

    Attributes:
        observers: Called before anything is done to the gradients of a step, with the names of the gates that the
            optimizer holds, and what a gradient scaler has told it, if any did: the factor that is left in their
            gradients, and a number above 0 if the optimizer is to skip this step, since they have overflowed.
        steps: Steps that were seen; optimizers that step in turn count as one.
        truncations: Steps since the last check at which there was a gradient to truncate (the search counts from 0).
        seconds: Time that all of this took.
        flops: Floating-point operations that all of this took.
    """

    def __init__(self, model: nn.Module, units: Units, penalty: float) -> None:
        self.model = model
        self.penalty = penalty
        self.steps = 0
        self.truncations = 0
        self.seconds = 0.0
        self.flops = 0
        slices = [piece for group in units.groups for piece in group.slices]
        self._entries = {group.entries.tensor for group in units.groups if group.entries is not None}
        self.gates = list(dict.fromkeys([*(piece.tensor for piece in slices if piece.gate), *sorted(self._entries)]))
        self.scales = {piece.tensor for piece in slices if piece.role == "scale"}
        self.observers: list[Callable[[list[str], Tensor | None, Tensor | None], None]] = []
        self._handles: list[RemovableHandle] = []
        self._needed: set[str] = set()  # gates whose gradients there will be something to do to
        self._held: dict[torch.optim.Optimizer, list[tuple[str, Tensor]]] = {}
        self._chi = 1.0
        self._fading: tuple[float, int] | None = None
        self._static: dict[torch.optim.Optimizer, list[_StaticGate]] = {}
        self._stepped: set[torch.optim.Optimizer] = set()  # since `steps` was counted up
        self._stepping: set[torch.optim.Optimizer] = set()

    @property
    def attached(self) -> bool:
        """Whether it hangs on an optimizer."""
        return bool(self._handles)

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """What it hangs on."""
        return list(self._held)

    @property
    def truncating(self) -> bool:
        """Whether gradients are being truncated."""
        return bool(self._static)

    def attach(self, optimizers: tuple[Any, ...], *, will_truncate: bool) -> None:
        """Hang on `optimizers`, or on the torch optimizers inside of them.

        Raises:
            SearchError: If it hangs on some already, or could not act on some gradient that it will have to act on.
        """
        if self.attached:
            raise SearchError("the search is attached already: detach it first")
        if not optimizers:
            raise SearchError("attach needs the optimizer that trains the model")
        self._needed = set(self.gates if will_truncate else self.scales if self.penalty else ())
        self._held = self._find_gates([_innermost(optimizer) for optimizer in optimizers])
        for optimizer in self._held:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def detach(self) -> None:
        """Leave the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._held, self._static = [], {}, {}
        self._stepped, self._stepping = set(), set()

    def check_acted(self, since: int) -> None:
        """Make sure that it has done its work, and look again for what there is to act on.

        Args:
            since: What `steps` was at the last check.

        Raises:
            SearchError: If it is not attached, has seen no step, could not truncate, or could not act on some
                gradient from here on.
        """
        if not self.attached:
            raise SearchError("the search is not attached to an optimizer: use `with search.attach(optimizer):`")
        if self.steps == since:
            raise SearchError(
                "no step of the attached optimizer since the last check: equal masks would look like emergence; attach "
                "the optimizer that trains the model"
            )
        if self.truncating and not self.truncations:
            raise SearchError(
                "truncation had no gradient to act on since the last check: are the parameters of the units frozen or "
                "replaced?"
            )
        self._held = self._find_gates(list(self._held))  # parameters may have been unfrozen, or added

    def _find_gates(
        self, optimizers: list[torch.optim.Optimizer]
    ) -> dict[torch.optim.Optimizer, list[tuple[str, Tensor]]]:
        """The gates that each optimizer holds, tied ones once."""
        tensors = named_tensors(self.model)
        gates = {id(tensors[name]): (name, tensors[name]) for name in self.gates}
        held = {
            optimizer: [gates[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in gates]
            for optimizer in optimizers
        }
        found = {id(gate) for some in held.values() for _, gate in some}
        for name in self.gates:
            if name in self._needed and tensors[name].requires_grad and id(tensors[name]) not in found:
                raise SearchError(
                    f"{name!r} is in none of the optimizers, so nothing would act on its gradient: attach all "
                    "optimizers that train the model, made after it was moved and wrapped"
                )
        if not any(tensors[name].requires_grad for name in self._needed or self.gates):
            raise SearchError(
                "all parameters of the units are frozen, so their scores cannot change and there is no gradient to "
                "act on: unfreeze them"
            )
        return held

    def set_truncation(self, masks: dict[str, Tensor], chi: float, half_life: float | None = None) -> None:
        """Truncate from now on.

        Args:
            masks: Per gate a boolean tensor that broadcasts against it, True is kept; empty: do not truncate.
            chi: What gradients of the others are multiplied by, in [0, 1].
            half_life: Optimizer steps in which the others themselves fade to a half; None: they do not.
        """
        self._static, self._chi, self._fading = {}, chi, None
        if masks and half_life is not None:
            dtypes = {gate.dtype for held in self._held.values() for _, gate in held}
            self._fading = fading_factor(half_life, max(dtypes, key=lambda dtype: torch.finfo(dtype).eps))
        for optimizer, held in self._held.items() if masks else ():
            self._static[optimizer] = [
                self._static_gate(name, gate, masks[name]) for name, gate in held if name in masks
            ]

    def _static_gate(self, name: str, gate: Tensor, kept: Tensor) -> _StaticGate:
        if name in self._entries:
            return _StaticGate(gate, kept, None, None)
        fading = None if self._fading is None else truncation_factor(kept, self._fading[0], gate.dtype)
        return _StaticGate(gate, kept, truncation_factor(kept, self._chi, gate.dtype), fading)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Adjust the gradients now, or wrap the closure that will compute them."""
        if optimizer in self._stepping or self._is_inside(optimizer):
            return None
        self._stepping.add(optimizer)
        if optimizer in self._stepped or not self._stepped:
            self.steps += 1
            self._stepped.clear()
        self._stepped.add(optimizer)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 and callable(args[1]) else None)
        if closure is None:
            self._adjust(optimizer)
            return None

        def adjusted() -> Any:
            try:
                loss = closure()
            except BaseException:
                self._stepping.discard(optimizer)  # the step ends here, and no hook will say so
                raise
            self._adjust(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": adjusted}
        return (args[0], adjusted, *args[2:]), kwargs

    def _is_inside(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether another optimizer that holds the same gates is stepping, and lets this one do its work."""
        own = {name for name, _ in self._held[optimizer]}
        return any(not own.isdisjoint(name for name, _ in self._held[other]) for other in self._stepping)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Let truncated gates fade, once after all steps inside of a step."""
        if optimizer not in self._stepping:
            return
        self._stepping.discard(optimizer)
        if self._fading is not None and self._static:
            self._fade(optimizer, *self._fading)

    @torch.no_grad()
    def _fade(self, optimizer: torch.optim.Optimizer, factor: float, every: int) -> None:
        """Shrink what is truncated."""
        start = time.perf_counter()
        if self.steps % every == 0:
            static = [one for one in self._static[optimizer] if one.gate.requires_grad]
            self._multiply([(one.gate, one.kept, one.fading) for one in static], factor)
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def _adjust(self, optimizer: torch.optim.Optimizer) -> None:
        """Let others look, add the penalty, then truncate; in one fused operation each, but for single weights."""
        start = time.perf_counter()
        for observe in self.observers:
            held = [name for name, _ in self._held[optimizer]]
            observe(held, getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None))
        if self.penalty:
            scales = [p for name, p in self._held[optimizer] if name in self.scales and p.grad is not None]
            if scales:
                signs = torch._foreach_sign(scales)
                # Under a GradScaler, a fused optimizer divides by this inside its step.
                if (grad_scale := getattr(optimizer, "grad_scale", None)) is not None:
                    torch._foreach_mul_(signs, grad_scale)
                torch._foreach_add_(
                    [scale.grad for scale in scales if scale.grad is not None], signs, alpha=self.penalty
                )
                self.flops += 3 * sum(scale.numel() for scale in scales)
        if self._static:
            static = self._static[optimizer]
            gradients = [(one.gate.grad, one.kept, one.truncation) for one in static if one.gate.grad is not None]
            self._multiply(gradients, self._chi)
            self.truncations += bool(gradients)
        self.seconds += time.perf_counter() - start

    def _multiply(self, tensors: list[tuple[Tensor, Tensor, Tensor | None]], number: float) -> None:
        """Multiply what is not kept by a number, in one fused operation, but for single weights.

        Args:
            tensors: What is to be changed, where it is kept, and its factors; None: they are still to be made.
            number: What the factors are where it is not kept.
        """
        for tensor, kept, factor in tensors:
            self.flops += tensor.numel()
            if factor is None:
                truncate_([tensor], [truncation_factor(kept, number, tensor.dtype)])
        made = [(tensor, factor) for tensor, _, factor in tensors if factor is not None]
        truncate_([tensor for tensor, _ in made], [factor for _, factor in made])


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    optimizer = unwrap_optimizer(optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SearchError(f"attach takes torch optimizers, not a {type(optimizer).__name__}")
    return optimizer
