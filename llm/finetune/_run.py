"""One fine-tuning run: a plain loop that can stop after any step and go on bit for bit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphlossy.core._signals import Signals
from graphlossy.llm.finetune import _lossy
from graphlossy.llm.finetune._checkpoint import give_back, state_of
from graphlossy.llm.finetune._config import FinetuneConfig
from graphlossy.llm.finetune._data import Batches, TokenDataset, as_tokens
from graphlossy.llm.finetune._errors import FinetuneError, Interrupted, need
from graphlossy.llm.finetune._evaluation import evaluate
from graphlossy.llm.finetune._folder import RunFolder, default_folder
from graphlossy.llm.finetune._model import add_adapters, check_fits
from graphlossy.llm.finetune._result import summarize
from graphlossy.llm.finetune._step import Stepper
from graphlossy.llm.finetune._surroundings import model_settings, resolve_device, torch_settings

__all__ = ["Finetuning", "Observer"]


class Observer:
    """Told what happens during a run; every method may be overridden and does nothing here."""

    def started(self, run: Finetuning) -> None:
        """The run begins, or goes on after ``run.step`` steps."""

    def step(self, line: dict[str, Any]) -> None:
        """A step is done, or the evaluation before the first one; ``line`` is what ``metrics.jsonl`` got."""

    def stopping(self) -> None:
        """A signal came; the run stops after the step that is under way."""


class Finetuning:
    """Fine-tunes a transformers model and writes a run folder.

    The model is trained in place; adapters, if any, are put into it. When the run ends, nothing is switched on.

    Args:
        model: a causal language model or a sequence classifier of transformers.
        train: token sequences, as `as_tokens` takes them.
        valid: held-out sequences; None: there is no evaluation.
        config: the settings; None: the defaults.
        folder: the run folder; None makes ``runs/llm-<model>-<time>``.
        tokenizer: saved with the tuned model.
        about: plain values that tell where model and data came from; kept in ``config.json``.
        checkpoint_seconds: least time between two checkpoints; 0 writes one after every step. One is always written at
            the end and on SIGINT and SIGTERM.

    Attributes:
        step: steps done.
        steps: of the whole run.
        result: contents of ``result.json``; None before the end.

    Raises:
        FinetuneError: data that the model cannot take, an unknown device.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> tiny = LlamaConfig(vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        ...                    num_attention_heads=2, pad_token_id=0)
        >>> tokens = torch.arange(1280).view(10, 128) % 32
        >>> config = FinetuneConfig.from_method("4bit", steps=2, device="cpu")
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     result = Finetuning(LlamaForCausalLM(tiny), tokens, tokens, config, Path(parent) / "run").run()
        >>> result["steps"], result["saved_bytes"] < result["plain_bytes"]
        (2, True)
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        valid: Any = None,
        config: FinetuneConfig | None = None,
        folder: str | Path | None = None,
        tokenizer: Any = None,
        about: dict[str, Any] | None = None,
        checkpoint_seconds: float = 300.0,
    ) -> None:
        config = FinetuneConfig() if config is None else config
        self.device = resolve_device(config.device)
        # What a run that goes on must repeat is written down as it was here.
        self.config = replace(config, device=str(self.device), threads=config.threads or torch.get_num_threads())
        self.model: Any = model
        self.tokenizer, self.about = tokenizer, about
        self.train = as_tokens(train)
        self.valid = None if valid is None else as_tokens(valid, "valid")
        for name, data in (("train", self.train), ("valid", self.valid)):
            if data is not None:
                check_fits(model, data, config.task, name)
        if not checkpoint_seconds >= 0:
            raise FinetuneError(f"checkpoint_seconds must be 0 or a positive number, got {checkpoint_seconds}")
        if config.lora_rank is not None:
            need("peft")
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        self.folder = RunFolder(default_folder(name) if folder is None else folder)
        self.batches = Batches(self.train, config.batch_size, config.accumulate, config.seed)
        self.steps = config.steps or config.epochs * self.batches.steps_in_epoch
        self.step, self.resumed = 0, False
        self.result: dict[str, Any] | None = None
        self._checkpoint_seconds, self._last_checkpoint = checkpoint_seconds, time.monotonic()
        self._signals = Signals()
        self._fingerprint = self.train.fingerprint()

    @classmethod
    def resume(
        cls, folder: str | Path, model: nn.Module, train: Any, valid: Any = None, tokenizer: Any = None,
        checkpoint_seconds: float = 300.0,
    ) -> Finetuning:  # fmt: skip
        """The run in ``folder``, with its own settings, to be continued by :meth:`run` from its last checkpoint.

        Args:
            folder: of the run.
            model, train, valid, tokenizer: what the run began with.
            checkpoint_seconds: as for the class.

        Raises:
            FinetuneError: ``folder`` is no run folder.
        """
        found = RunFolder(folder).read_config()
        config = FinetuneConfig.from_dict(found["settings"])
        run = cls(model, train, valid, config, folder, tokenizer, found["about"], checkpoint_seconds)
        run.resumed = True
        return run

    def run(self, observer: Observer | None = None) -> dict[str, Any]:
        """Trains to the end, saves the model, and returns the contents of ``result.json``.

        Args:
            observer: told of every step.

        Raises:
            FinetuneError: a loss that is not finite, too little memory, a folder that cannot be written, a checkpoint
                of other data or of another model.
            Interrupted: SIGINT or SIGTERM came; the checkpoint is written. A second SIGINT raises KeyboardInterrupt.
        """
        observer = Observer() if observer is None else observer
        done = self.folder.read_result() if self.resumed else None
        if done is not None:
            self.result, self.step = done, done["steps"]
            return done
        try:
            with self._signals.caught(observer.stopping), torch_settings(self.config.threads, self.device):
                self.result = self._run(observer)
        except OSError as error:
            raise FinetuneError(f"cannot write run folder {self.folder.path}: {error.strerror or error}") from None
        except FinetuneError:
            if self.step == 0 and not self.resumed:
                self.folder.discard()
            raise
        finally:
            self.folder.close()
        return self.result

    def _run(self, observer: Observer) -> dict[str, Any]:
        torch.manual_seed(self.config.seed)
        if self.config.lora_rank is not None:
            self.model = add_adapters(self.model, self.config)
        self.model.to(self.device)
        with model_settings(self.model, self.config.gradient_checkpointing), self._switched() as stepper:
            self._open(stepper)
            observer.started(self)
            if self.step == 0 and self.valid is not None:
                self._note({"step": 0, **self._evaluate(self.valid)}, observer)
            while self.step < self.steps:
                self._stop_if_asked(stepper)
                line = stepper.run(self.step + 1)
                self.step += 1
                if self.valid is not None and self._evaluation_due():
                    line.update(self._evaluate(self.valid))
                self._note(line, observer)
                if time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds or self.step == self.steps:
                    self._checkpoint(stepper)
        return self._finish(stepper)

    @contextmanager
    def _switched(self) -> Iterator[Stepper]:
        ledger = _lossy.switch_on(self.model, self.config) if self.config.lossy else None
        try:
            yield Stepper(self.model, self.config, self.batches, self.steps, self.device, ledger)
        finally:
            if ledger is not None:
                _lossy.switch_off(self.model)

    # -- beginning and going on -------------------------------------------------------------------------------------

    def _open(self, stepper: Stepper) -> None:
        if not self.resumed:
            return self.folder.create(self.config.to_dict(), self.about)
        state = self.folder.reopen()
        if state is None:  # it was killed before its first checkpoint
            return None
        self.step = give_back(state, stepper, self._fingerprint, str(self.folder.path))
        return None

    # -- after a step -----------------------------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        every = self.config.eval_every
        if every is None:
            every = max(1, -(-self.steps // 10))
        return self.step == self.steps or (every > 0 and self.step % every == 0)

    def _evaluate(self, data: TokenDataset) -> dict[str, float]:
        start = time.perf_counter()
        config = self.config
        found = evaluate(self.model, data, config.batch_size, config.dtype, config.eval_sequences)
        return {**found, "evaluation_seconds": time.perf_counter() - start}

    def _note(self, line: dict[str, Any], observer: Observer) -> None:
        self.folder.log(line)
        observer.step(line)

    def _checkpoint(self, stepper: Stepper) -> None:
        self.folder.checkpoint(state_of(stepper, self.step, self._fingerprint))
        self._last_checkpoint = time.monotonic()

    def _stop_if_asked(self, stepper: Stepper) -> None:
        if self._signals.number is not None:
            self._checkpoint(stepper)
            raise Interrupted(self.folder.path, self.step, self._signals.number)

    def _finish(self, stepper: Stepper) -> dict[str, Any]:
        if self.config.merge and self.config.lora_rank is not None:
            self.model = self.model.merge_and_unload()
        self.folder.save_model(self.model, self.tokenizer)
        result = summarize(self, self.folder.read_metrics(), stepper)
        self.folder.finish(result)
        return result
