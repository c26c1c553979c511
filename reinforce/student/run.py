"""One process of a training run: the state it holds, the steps it takes, what it saves and takes up again."""

import math
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from reinforce.config import ConfigError, StudentConfig
from reinforce.student.batch import Batch
from reinforce.student.best import Best, BestWeights
from reinforce.student.checkpoint import (
    CHECKPOINT_FILE,
    Progress,
    Trainables,
    load_checkpoint,
    read_progress,
    save_checkpoint,
)
from reinforce.student.distributed import Processes
from reinforce.student.examine import figures_of, prepare_examination
from reinforce.student.fake_quant import add_rounding, without_rounding
from reinforce.student.identity import changes, identity, provenance
from reinforce.student.journal import METRICS_FILE, Journal
from reinforce.student.learner import Learner, backward, rng_state, set_rng_state
from reinforce.student.meter import Meter
from reinforce.student.models import Student, build_student
from reinforce.student.objective import initial_logit_scale, make_loss
from reinforce.student.optimize import learning_rate, make_average, make_optimizer
from reinforce.student.plan import ReadPlan
from reinforce.student.streams import Streams
from reinforce.student.taken_bank import banks_of


class TrainingError(ValueError):
    """Training cannot go on; the message is one line that says where and what to try."""


class Run:
    """One process of a training run."""

    def __init__(self, config: StudentConfig, plan: ReadPlan, folder: Path, processes: Processes) -> None:
        self.config = config
        self.plan = plan
        self.folder = folder
        self.processes = processes
        self.num_samples = plan.count_samples()
        self.num_steps = config.steps or max(1, round((config.epochs or 0) * self.num_samples / config.batch_size))
        self.bank, examined_by = banks_of(config, plan)
        dims = {name: int(model["dim"]) for name, model in plan.teachers.items()}
        self.loss = make_loss(config, plan, dims, self.bank)
        self.examination = prepare_examination(config, examined_by, plan.modalities) if processes.is_first else None
        self.best = BestWeights(folder)
        heads = dims if config.loss.kind == "dime_fm" and len(dims) > 1 else {}
        self.student = replace(build_student(config.model, config.seed), modalities=plan.modalities, heads=heads)
        if self.student.tokenizer is None and config.loss.kind == "clip":
            raise ConfigError("student.model.text: null; loss.kind clip needs a text tower")
        scale = initial_logit_scale(config, plan)
        if scale is not None:
            self.student.model.logit_scale.data.fill_(math.log(scale))
        if config.quantization is not None:
            add_rounding(self.student.model.visual, self.student.image_size)
        if config.gradient_checkpointing:
            self.student.model.set_grad_checkpointing(True)
        torch.manual_seed(config.seed)
        module = Learner(self.student, config.loss, dims).to(processes.device)
        self.module = module
        self.trainables = Trainables(
            module, make_optimizer(module, config.optimizer), make_average(module, config.optimizer)
        )
        self.learner = self._wrapped(module)
        self.first_step = 0
        self.begins_anew = False
        self.left_out: Counter[str] = Counter()
        self.streams = Streams(config, plan, self.student, self.bank, processes)
        torch.manual_seed(config.seed + processes.rank)

    @property
    def is_finished(self) -> bool:
        return self.first_step >= self.num_steps

    @property
    def _chooses(self) -> bool:
        return self.config.evaluation is not None and self.config.evaluation.choose == "best"

    def begin(self, *, resume: bool) -> None:
        """Makes the output folder, or takes up the run that is there. Raises `ConfigError` if that was another."""
        checkpoint = self.folder / CHECKPOINT_FILE
        was_begun = (self.folder / METRICS_FILE).exists()
        self.begins_anew = resume and was_begun and not checkpoint.exists()
        if not resume and was_begun:
            raise ConfigError(f"--output {self.folder}: holds a run already; pass --resume or another --output")
        if resume and checkpoint.exists():
            progress = read_progress(checkpoint)
            changed = changes(progress.identity, self._identity())
            if changed:
                raise ConfigError(f"--resume: the run in {self.folder} was another: {'; '.join(changed)}")
            set_rng_state(load_checkpoint(checkpoint, self.trainables, self.processes.rank), self.processes.device)
            self.first_step = progress.step
            if self.processes.is_first and self._chooses:
                self.best = BestWeights(self.folder, progress.best)
            self.streams.go_on(progress, checkpoint)
        self.processes.wait()
        self.folder.mkdir(parents=True, exist_ok=True)

    def trained(self) -> Student:
        """The student as it is now, with averaged weights if the recipe asks for them, rounded if it is trained so."""
        average = self.trainables.average
        return self.student if average is None else replace(self.student, model=average.module.model)

    def chosen(self) -> Student:
        """The student that the run is for, once its steps are taken: by the recipe, that of its best evaluation.

        Its weights are in full.
        """
        student = self.trained()
        if self._chooses:
            self.best.put_into(student)
        return replace(student, model=without_rounding(student.model))

    def take_steps(self, journal: Journal | None) -> None:
        """The steps that are left; raises `TrainingError` if the loss is no longer finite."""
        meter = Meter(self.config.batch_size)
        with self.streams.batches() as batches:
            for step in range(self.first_step + 1, self.num_steps + 1):
                with meter.waiting():
                    batch = next(batches)
                self.streams.note(batch.position)
                self.left_out.update(batch.counts)
                terms, gradient_norm = self._step(step, batch.to(self.processes.device))
                meter.add(terms, batch)
                is_last = step == self.num_steps
                if is_last or step % self.config.log_every == 0:
                    self._log(step, meter.figures(), float(gradient_norm), journal)
                self._evaluate(step, journal)
                if is_last or step % self.config.checkpoint_every == 0:
                    # With a gradient that is not finite the weights no longer are, though the loss was.
                    self._check_finite(step, float(terms["loss"].detach()) + float(gradient_norm))
                    self._save(step)
        if journal is not None:
            journal.line(meter.limit(self.config.data, may_share_decoding=self.streams.triplets is None))
            if self._chooses and self.best.kept is not None:
                journal.line(f"the best evaluation is that of {self.best.kept.headline()}")

    def _log(self, step: int, figures: dict[str, Any], gradient_norm: float, journal: Journal | None) -> None:
        self._check_finite(step, figures["loss"])
        left_out = sum(self.processes.gather(self.left_out), Counter[str]())
        if journal is None:
            return
        samples = step * self.config.batch_size
        more = {
            "samples": samples,
            "epoch": samples / self.num_samples,
            "learning_rate": learning_rate(step, self.num_steps, self.config.optimizer),
            "logit_scale": float(self.student.model.logit_scale.detach().exp()),
            "gradient_norm": gradient_norm,
        }
        journal.train(step, figures | more, left_out)

    def _step(self, step: int, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """One optimizer step; returns the loss with its terms and the gradient's norm before clipping."""
        optimizer, config = self.trainables.optimizer, self.config.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, self.num_steps, config)
        optimizer.zero_grad(set_to_none=True)
        terms = backward(self.learner, self.loss, batch, num_parts=self.config.accumulate, autocast=self._autocast())
        limit = config.clip_norm if config.clip_norm is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.trainables.module.parameters(), limit)
        optimizer.step()
        self.module.bound_logit_scale()
        if self.trainables.average is not None:
            self.trainables.average.update_parameters(self.trainables.module)
        return terms, norm

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _evaluate(self, step: int, journal: Journal | None) -> None:
        evaluation = self.config.evaluation
        if evaluation is None or not (step == self.num_steps or step % evaluation.every_steps == 0):
            return
        if self.examination is not None and journal is not None:
            results = self.examination.of(self.trained(), self.processes.device)
            figures = figures_of(results)
            left_out = sum((Counter(result.drops) for result in results.values()), Counter[str]())
            journal.evaluation(step, {"samples": step * self.config.batch_size, **figures}, left_out)
            if self._chooses:
                measured = evaluation.model_dump(mode="json", exclude={"every_steps", "choose"})
                self.best.offer(Best(step, figures, measured), self.trained())
        self.processes.wait()

    def _check_finite(self, step: int, loss: float) -> None:
        if loss - loss != 0:
            raise TrainingError(
                f"step {step}: the loss is {loss}; lower student.optimizer.learning_rate (now "
                f"{self.config.optimizer.learning_rate:g}) or raise warmup_steps. The last checkpoint is kept"
            )

    def _save(self, step: int) -> None:
        gathered = self.processes.gather((*self.streams.places(), rng_state(self.processes.device)))
        if self.processes.is_first:
            positions, next_workers, sentences, rng_states = (list(values) for values in zip(*gathered, strict=True))
            progress = Progress(step, positions, next_workers, self._identity(), self.best.kept, sentences)
            mined = self.streams.triplets.mined if self.streams.triplets is not None else None
            save_checkpoint(self.folder / CHECKPOINT_FILE, self.trainables, progress, rng_states, mined)
            self.best.sweep()
        self.processes.wait()

    def _identity(self) -> dict[str, Any]:
        return identity(self.config, self.plan, self.bank, self.processes.world_size)

    def provenance(self) -> dict[str, Any]:
        """What `student.json` says of where the student comes from."""
        chosen = self.best.kept.describe() if self.best.kept and self._chooses else None
        return provenance(self.config, self.plan, self.bank, self.num_steps, chosen)

    def files(self) -> dict[str, bytes]:
        """What the student's folder takes along of the dataset, by path."""
        return self.bank.files if self.bank else {}

    def _wrapped(self, module: Learner) -> Any:
        learner: Any = torch.compile(module) if self.config.compile else module
        return DistributedDataParallel(learner) if self.processes.world_size > 1 else learner

    def description(self) -> list[str]:
        """What a user checks before the steps begin, in a few lines."""
        num_parameters = sum(parameter.numel() for parameter in self.student.model.parameters())
        lines = [
            f"student: {num_parameters / 1e6:.1f} M parameters, {self.student.image_size} px; "
            f"{self.num_steps:,} steps of {self.config.batch_size:,} on {self.processes.device}",
            f"data: {self.num_samples:,} samples, {self.plan.num_views} views, captions "
            f"{', '.join(self.plan.num_captions) or 'none'}; stored signals of {self.loss.signals}",
        ]
        if self.plan.sentences is not None:
            lines.append(self.plan.sentences.description())
        if self.plan.num_skipped_shards:
            lines.append(f"{self.plan.num_skipped_shards:,} unfinished shards are left out")
        if self.streams.triplets is not None and self.config.model.checkpoint is None and not self.first_step:
            lines.append("triplets of a student with random weights: student.model.checkpoint names one of stage 1")
        if self.begins_anew:
            lines.append(f"no checkpoint in {self.folder} yet: begins anew")
        return lines + ([f"going on from step {self.first_step:,}"] if self.first_step else [])
