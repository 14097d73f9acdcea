"""Dynamic batch loading in a training run (Xia et al., 2023, arXiv 2310.06694, section 2.2)."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from drama_models.checkpoints import checkpoint_folder
from drama_models.errors import TrainingError
from pruning.held_out import held_out_figures
from pruning.proportions import updated_proportions

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from pruning.corpus import Corpus
    from pruning.language_modelling import LanguageModellingRecipe
    from pruning.mixture import MixedSequences

UPDATES = "proportions.json"


class DynamicLoading(TrainerCallback):
    """Evaluates at intervals, has the text that follows drawn by new shares, and survives a resume.

    When a step ends, the loader already holds the first part of the next one; new shares apply from the step after
    that, in an uninterrupted run and in a resumed one.
    """

    def __init__(
        self, recipe: LanguageModellingRecipe, data: MixedSequences, corpus: Corpus, reference: dict[str, float]
    ) -> None:
        self.recipe, self.data, self.corpus, self.reference = recipe, data, corpus, reference
        self.updates: list[dict[str, Any]] = []

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """In a resumed run: redo what the checkpoint's run had drawn. In a new one: the first update, if it has one."""
        if state.global_step:
            checkpoint = checkpoint_folder(self.recipe.out) / f"checkpoint-{state.global_step}"
            self.updates = json.loads((checkpoint / UPDATES).read_text(encoding="utf-8"))
            for update in self.updates:
                self.data.redraw(update["first_sequence"], update["proportions"])
        elif self.recipe.updates_before_training and model is not None:
            self._update(model, step=0, first_sequence=0)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """At every interval: evaluate, and draw what follows by new shares."""
        if state.global_step % self.recipe.update_every == 0 and model is not None:
            following = (state.global_step + 1) * self.recipe.batch_size * args.world_size
            self._update(model, state.global_step, min(following, len(self.data)))

    def _update(self, model: torch.nn.Module, step: int, first_sequence: int) -> None:
        """Shares by the losses of now; kept also where no text follows, for the stage that comes next.

        Raises:
            TrainingError: a loss that is not finite.
        """
        figures = held_out_figures(model, self.corpus, **self.recipe.held_out)
        losses = {domain: figures[domain]["loss"] for domain in self.data.proportions}
        broken = [domain for domain, loss in losses.items() if not math.isfinite(loss)]
        if broken:
            raise TrainingError(
                f"The held-out loss of domain {broken[0]!r} is {losses[broken[0]]} at step {step}; nothing after the "
                "last checkpoint is kept. Try a lower learning_rate, or look at the held-out text."
            )
        shares = updated_proportions(
            list(self.data.proportions.values()),
            list(losses.values()),
            [self.reference[domain] for domain in losses],
            update=self.recipe.update_proportions,
            clip=self.recipe.clip_differences,
        )
        proportions = dict(zip(losses, shares.tolist(), strict=True))
        self.updates.append(
            {"step": step, "first_sequence": first_sequence, "losses": losses, "proportions": proportions}
        )
        self.data.redraw(first_sequence, proportions)

    def save(self, checkpoint: Path) -> None:
        """Keep the updates with a checkpoint."""
        (checkpoint / UPDATES).write_text(json.dumps(self.updates), encoding="utf-8")
