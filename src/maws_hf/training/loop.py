"""The one training loop.

Rank discipline: functions with collectives (`prepare`, `backward`, `reduce`, `save_checkpoint`) are called by all
ranks at the same point of the step; only the main process writes metrics and pictures. A decision (stop, refuse, give
up) is taken from a sum over ranks, so all ranks take it together.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..evaluation.flops import measure_matmul_peak
from ..optim.ema import WeightAverage
from ..optim.groups import parameter_groups
from ..optim.schedules import warmup_cosine
from ..whole_files import remove_leftovers
from . import checkpoint as ckpt
from . import sharded_files
from .agreement import TrainingError, named_failures, reasons_of_ranks
from .arguments import TrainingArguments
from .distributed import launcher_process
from .interruption import GracefulStop
from .output_lock import lock_output
from .prefetch import OnDemand, read_batches
from .records import JsonLines, Progress, cut_back_ranks
from .resumption import compare_recipes, find_checkpoint, images_per_step, peak_learning_rate, restore_position
from .seeding import seed_step
from .sharding import copies_wanted, rebind_groups, shard_model, sharding_wanted, whole_norm
from .skips import note_skipped, too_many_bad_images
from .spikes import MOST_SKIPPED, highest_loss, remember

BatchLoss = Callable[[torch.nn.Module, dict[str, Any]], Tensor]
AVERAGE = "average.safetensors"
# Where AdamW's fused kernel can be told, by a tensor, to change nothing; on Apple's GPUs it does not listen.
DECIDING_DEVICES = ("cpu", "cuda")


@dataclass
class State:
    """Everything about a run that is neither a weight, nor optimizer state, nor a position in the stream."""

    step: int = 0
    images_seen: int = 0
    images_skipped: int = 0
    refused_in_a_row: int = 0
    loss_sum: float = 0.0  # since the last line of metrics
    loss_count: int = 0
    spikes_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of updates that were made
    recent_skips: list[list] = field(default_factory=list)  # this rank's [images, keys of skipped ones] a step


@dataclass
class Outcome:
    """How a run ended: `exit_code` is 0, or 128 + the signal that stopped it."""

    step: int
    exit_code: int
    images_seen: int


def train(
    model: PreTrainedModel,
    batch_loss: BatchLoss,
    loader: Any,
    recipe: TrainingArguments,
    accelerator: Accelerator,
    *,
    groups: list[dict[str, Any]] | None = None,
    flops_per_image: int | None = None,
    after_step: Callable[[int, PreTrainedModel], None] | None = None,
) -> Outcome:
    """Trains `model` in place until `recipe.max_steps`, from the checkpoint in `recipe.output_dir` if there is one.

    Args:
        model: on any device; `accelerator.unwrap_model` of it holds the result, which is the average of the weights
            if the recipe asks for one and the run is complete.
        batch_loss: the objective, a mean over the images of a batch.
        loader: infinite batches from `maws_hf.data.loader.build_loader`, of this rank.
        groups: of parameters for AdamW; see [`parameter_groups`], which makes two by default.
        flops_per_image: for the operations spent, and for the share of the device's peak in the bar.
        after_step: called on the main process after each update, with the unwrapped model; on all processes if its
            parameters are sharded, because a forward pass then needs all of them.

    Raises:
        TrainingError: after too many non-finite updates in a row or too many bad images.
        CheckpointError: if a checkpoint does not fit the recipe, or cannot be written.
    """
    ranks = accelerator.process_index, accelerator.num_processes
    with named_failures(*ranks, lambda: "at its start"):
        run = _Run(model, loader, recipe, accelerator, groups)
    run.flops_per_image = flops_per_image
    if flops_per_image:
        peak = measure_matmul_peak(accelerator.device, torch.bfloat16 if recipe.bf16 else torch.float32)
        run.utilization_of_image_rate = flops_per_image / (peak * accelerator.num_processes)
    exit_code = 0
    with (
        GracefulStop(launcher_process()) as stop,  # first: a Ctrl-C while workers are forked would be lost
        read_batches(loader, accelerator.device, recipe.gradient_accumulation_steps) as batches,
        named_failures(*ranks, lambda: f"in step {run.state.step + 1}"),
    ):
        while run.state.step < recipe.max_steps:
            learning_rate = run.set_learning_rate()
            window = run.read_window(batches)
            loss = run.accumulate_gradients(window, batch_loss)
            norm = run.clip()
            loss, gradient_norm, left_out, anyone_stops = run.update(loss, norm, stop.requested, window)
            if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
                run.refuse(window, loss, gradient_norm)
            else:
                run.note_spike(window, loss, gradient_norm, left_out)
                if not left_out:
                    run.accept(loss)
            run.finish_step(gradient_norm, learning_rate)
            if after_step is not None and (accelerator.is_main_process or run.sharded):
                after_step(run.state.step, run.unwrapped)
            due = run.state.step % recipe.save_steps == 0 or run.state.step == recipe.max_steps
            if due or anyone_stops:
                run.save()
            if run.give_up is not None:
                raise TrainingError(run.give_up)
            if anyone_stops:
                exit_code = stop.exit_code or 128 + signal.SIGTERM  # another rank may have got the signal
                break
    run.progress.close()
    if run.average is not None and not exit_code:
        run.average.copy_to(run.unwrapped)
    return Outcome(run.state.step, exit_code, run.state.images_seen)


def wait_for(numbers: Tensor) -> list[float]:
    """Their values, once the device has computed them; `scripts/timed_loop.py` puts a simulated device here."""
    return numbers.tolist()


class _Run:
    """The moving parts of one run; each method is one line of the loop above."""

    def __init__(
        self,
        model: PreTrainedModel,
        loader: Any,
        recipe: TrainingArguments,
        accelerator: Accelerator,
        groups: list[dict[str, Any]] | None,
    ):
        self.recipe, self.accelerator, self.loader = recipe, accelerator, loader
        output_dir = Path(recipe.output_dir)
        self.root = output_dir / "checkpoints"
        self.images_per_step = images_per_step(asdict(recipe), accelerator.num_processes)
        self.peak_learning_rate = peak_learning_rate(asdict(recipe), accelerator.num_processes)
        if accelerator.is_main_process:
            # Kept by what outlives the run: its script has yet to write the model there.
            accelerator.output_lock = lock_output(output_dir)
            for folder in (output_dir, *filter(os.path.isdir, output_dir.iterdir())):
                with suppress(OSError):  # another's, or on a disk that is only read
                    remove_leftovers(folder)  # of pictures and records that a kill met
        self.state = State()
        self.saved_step: int | None = None
        self.flops_per_image: int | None = None
        self.utilization_of_image_rate: float | None = None
        self.give_up: str | None = None  # why the run cannot go on after this step
        self.position: dict[str, Any] = {}  # in the data, after the last window that was read
        resumed = find_checkpoint(self.root, recipe.resume_from_checkpoint, accelerator, strict=recipe.strict_resume)
        self.sharded = sharding_wanted()
        if self.sharded:
            shard_model(
                model,
                accelerator.device,
                recipe.seed,
                bf16=recipe.bf16,
                copies=copies_wanted(accelerator.num_processes),
            )
            groups = groups and rebind_groups(groups, model)
        # Opened once for weights and moments: it may be the files of many processes.
        with nullcontext() if resumed is None else sharded_files.CheckpointTensors(resumed.path) as saved:
            if saved is not None:
                sharded_files.load_weights(model, saved)
            self._prepare(model, groups)
            if resumed is not None:
                self._restore(resumed, saved)
                self.saved_step = self.state.step
        rank = accelerator.process_index
        suffix = f"-rank{rank}" if rank else ""
        self.skipped = JsonLines(Path(recipe.output_dir) / f"skipped{suffix}.jsonl")
        self.refused = JsonLines(Path(recipe.output_dir) / f"refused{suffix}.jsonl")
        self.spikes = JsonLines(Path(recipe.output_dir) / f"spikes{suffix}.jsonl")
        for lines in (self.skipped, self.refused, self.spikes):
            lines.cut_back(self.state.step)
        if accelerator.is_main_process:
            cut_back_ranks(Path(recipe.output_dir), accelerator.num_processes, self.state.step)
        self.progress = Progress(accelerator, Path(recipe.output_dir), self.state.step, recipe.max_steps)
        if resumed is not None:
            self.progress.say(f"resuming after step {self.state.step} from {resumed.path}")
        self._tick = (time.perf_counter(), self.state.step)

    def _prepare(self, model: PreTrainedModel, groups: list[dict[str, Any]] | None) -> None:
        """Puts what is trained, and how, where it belongs on this process' device."""
        recipe, accelerator = self.recipe, self.accelerator
        optimizer = torch.optim.AdamW(
            groups or parameter_groups(model, recipe.weight_decay),
            lr=0.0,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            fused=True,
        )
        if self.sharded:
            self.model, self.optimizer = model, accelerator.prepare_optimizer(optimizer)
        else:
            self.model, self.optimizer = accelerator.prepare(model, optimizer)
            if isinstance(self.model, DistributedDataParallel):
                self.model.broadcast_buffers = False  # ours are constants; told at first, it would never send them
        # Looked up for every update, both would take a millisecond in which a device idles.
        self.unwrapped = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.modules = list(self.model.modules())
        self.average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None

    def read_window(self, batches: OnDemand) -> list[dict[str, Any]]:
        """The batches of one update. If a rank has none, all ranks save where they were before, and stop."""
        window, error = [], None
        try:
            window = [next(batches) for _ in range(self.recipe.gradient_accumulation_steps)]
        except StopIteration:
            error = TrainingError("the data of this process have ended")
        except Exception as raised:
            error = raised
        reasons = reasons_of_ranks(self.accelerator, error)
        if not reasons:
            self.position = batches.position
            return window
        if self.state.step and self.state.step != self.saved_step:
            self.save()
        if error is not None and self.accelerator.num_processes == 1:
            raise error
        raise TrainingError(f"step {self.state.step + 1} has no images on {'; '.join(reasons)}") from error

    def set_learning_rate(self) -> float:
        learning_rate = warmup_cosine(
            self.state.step,
            peak=self.peak_learning_rate,
            warmup_steps=self.recipe.warmup_steps,
            max_steps=self.recipe.max_steps,
            final=self.recipe.min_learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        return learning_rate

    def accumulate_gradients(self, window: list[dict[str, Any]], batch_loss: BatchLoss) -> Tensor:
        """Gradients of the mean over the whole window; returns that mean on the device, this rank's."""
        total = torch.zeros((), device=self.accelerator.device)
        if not all(module.training for module in self.modules):
            self.model.train()  # takes far longer than to see that nothing is to be done
        for micro_step, batch in enumerate(window):
            seed_step(self.recipe.seed, self.accelerator.process_index, self.state.step, micro_step)
            is_last = micro_step == len(window) - 1
            if self.sharded:
                self.model.set_requires_all_reduce(is_last)  # over copies of the model, if there are several
            # Within one gradients are reduced every time: kept, they would be as large as the whole model.
            with nullcontext() if is_last or self.sharded else self.accelerator.no_sync(self.model):
                loss = batch_loss(self.model, batch) / len(window)
                self.accelerator.backward(loss)
            total += loss.detach().float()
            window[micro_step] = {name: batch[name] for name in ("keys", "skipped")}  # lets go of the tensors
        return total

    def clip(self) -> Tensor:
        """The global gradient norm before clipping, on the device; equal on all ranks, because the gradients are."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = whole_norm(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if self.recipe.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.max_grad_norm, norm)
        return norm

    def update(
        self, loss: Tensor, norm: Tensor, stop: bool, window: list[dict[str, Any]]
    ) -> tuple[float, float, bool, bool]:
        """A step of the optimizer, and what all ranks know after it.

        The weights are left as they are where loss or norm are not finite, or the loss is a spike to be left out. The
        device decides that, so that it has all of this to do while the host waits for it, here and once.

        Returns:
            Mean loss of all ranks, the gradient norm, whether the weights were left as they are, and whether any rank
            wants to stop: a signal came, or bad images are too many.
        """
        recent, limit = self.state.recent_skips, self.recipe.max_skip_rate
        skipped, too_many = note_skipped(window, self.state.step + 1, recent, self.skipped, limit)
        # Filled there: CUDA copies a number that is put at an index from the host, and waits for all it has to do.
        votes = torch.stack([loss, *(loss.new_full((), float(vote)) for vote in (stop, skipped, too_many))])
        sums = self.accelerator.reduce(votes, reduction="sum")
        mean_loss = sums[0] / self.accelerator.num_processes
        accepted = mean_loss.isfinite() & norm.isfinite() & (mean_loss <= self._highest_loss())
        refused = 1 - accepted.float()
        device_decides = loss.device.type in DECIDING_DEVICES
        if device_decides:
            self.optimizer.optimizer.found_inf = refused  # AdamW's kernel reads it and does nothing where it is 1
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        numbers = wait_for(torch.cat([sums, torch.stack([norm, refused])]))
        loss_sum, stops, all_skipped, any_too_many, gradient_norm, left_out = numbers
        if not device_decides:
            if not left_out:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.state.images_skipped += int(all_skipped)
        if any_too_many:
            self.give_up = too_many_bad_images(recent, self.skipped, limit, here=too_many)
            recent.clear()  # the data are repaired before the run goes on, or judged anew
        mean = loss_sum / self.accelerator.num_processes
        return mean, gradient_norm, bool(left_out), stops + any_too_many > 0

    def _highest_loss(self) -> float:
        """The weights are not changed for a higher one."""
        may_skip = self.recipe.skip_loss_spikes and self.state.spikes_in_a_row < MOST_SKIPPED
        return highest_loss(self.state.recent_losses, self.recipe.loss_spike_factor) if may_skip else math.inf

    def note_spike(self, window: list[dict[str, Any]], loss: float, gradient_norm: float, left_out: bool) -> None:
        """Tells of a loss that jumps."""
        if not left_out and loss <= highest_loss(self.state.recent_losses, self.recipe.loss_spike_factor):
            self.state.spikes_in_a_row = 0
            return
        self.state.spikes_in_a_row += 1
        self._note_update(self.spikes, window, loss, gradient_norm, skipped=left_out)
        self.progress.say(
            f"step {self.state.step + 1}: the loss jumps to {loss:.4g}"
            f"{', the update is left out' if left_out else ''}; its images are in {self.spikes.path}"
        )

    def _note_update(
        self, file: JsonLines, window: list[dict[str, Any]], loss: float, gradient_norm: float, **more: bool
    ) -> None:
        keys = [key for batch in window for key in batch["keys"]]
        step = self.state.step + 1
        file.append({"step": step, "loss": str(loss), "grad_norm": str(gradient_norm), **more, "keys": keys})

    def accept(self, loss: float) -> None:
        self.state.refused_in_a_row = 0
        remember(loss, self.state.recent_losses)
        self.state.loss_sum += loss
        self.state.loss_count += 1
        if self.average is not None:
            self.average.update(self.unwrapped, self.state.step + 1)

    def refuse(self, window: list[dict[str, Any]], loss: float, gradient_norm: float) -> None:
        self.state.refused_in_a_row += 1
        step = self.state.step + 1
        self._note_update(self.refused, window, loss, gradient_norm)
        message = (
            f"step {step} refused: loss {loss}, gradient norm {gradient_norm}; its images are in {self.refused.path}"
        )
        if self.state.refused_in_a_row >= self.recipe.max_nonfinite_steps:
            raise TrainingError(
                f"{message}. That was {self.state.refused_in_a_row} in a row (--max_nonfinite_steps). Try a lower "
                "--base_learning_rate, a longer --warmup_steps, --max_grad_norm 1 or no --bf16; earlier checkpoints "
                "are intact"
            )
        self.progress.say(message)

    def finish_step(self, gradient_norm: float, learning_rate: float) -> None:
        state = self.state
        state.step += 1
        state.images_seen += self.images_per_step
        self.progress.advance()
        if state.step % self.recipe.logging_steps and state.step != self.recipe.max_steps:
            return
        now, (since, since_step) = time.perf_counter(), self._tick
        rate = (state.step - since_step) * self.images_per_step / (now - since)
        metrics = {
            "loss": state.loss_sum / state.loss_count if state.loss_count else None,
            "learning_rate": learning_rate,
            "grad_norm": gradient_norm if math.isfinite(gradient_norm) else None,
            "images_seen": state.images_seen,
            "images_skipped": state.images_skipped,
            "images_per_second": rate,
        }
        if self.flops_per_image is not None:
            metrics["training_flops"] = state.images_seen * self.flops_per_image
        if self.utilization_of_image_rate is not None:
            metrics["flops_utilization"] = rate * self.utilization_of_image_rate
        self.progress.log(state.step, metrics)
        state.loss_sum, state.loss_count = 0.0, 0
        self._tick = (now, state.step)

    def save(self) -> None:
        rank = self.accelerator.process_index

        def write_files(directory: Path) -> None:
            if self.sharded:
                sharded_files.save_training(self.model, self.optimizer, self.average, directory)
            elif self.accelerator.is_main_process:
                self.unwrapped.save_pretrained(directory)
                ckpt.save_optimizer(self.optimizer, directory / "optimizer.safetensors")
                if self.average is not None:
                    save_file(self.average.state_dict(), directory / AVERAGE)
            own = {"state": asdict(self.state), "stream": self.position}
            (directory / f"rank-{rank:05d}.json").write_text(json.dumps(own), encoding="utf-8")

        ckpt.save_checkpoint(
            self.root,
            self.state.step,
            write_files,
            facts=self._facts(),
            keep=self.recipe.save_total_limit,
            is_main=self.accelerator.is_main_process,
            barrier=self.accelerator.wait_for_everyone,
            agree=partial(reasons_of_ranks, self.accelerator),
        )
        self.saved_step = self.state.step

    def _facts(self) -> dict[str, Any]:
        """What a later run is compared with before it continues."""
        return {
            "world_size": self.accelerator.num_processes,
            "recipe": asdict(self.recipe),
            "versions": {module.__name__: module.__version__ for module in (torch, transformers, accelerate)},
        }

    def _restore(self, checkpoint: ckpt.Checkpoint, saved: sharded_files.CheckpointTensors) -> None:
        rank, world_size, say = self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.print
        compare_recipes(checkpoint, self.recipe, world_size, say)
        sharded_files.load_moments(self.optimizer, self.average, saved)
        self.state = State(**restore_position(self.loader, checkpoint, self.recipe, rank, world_size, say))
