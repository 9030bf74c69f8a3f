"""The command `lightning-al query`: pick from the pool with the weights of a checkpoint."""

from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_al.acquisition.query_trained import query
from lightning_al.cli.arguments import print_line
from lightning_al.cli.fit import ActiveLearningCLI
from lightning_al.model.checkpoint import load_weights
from lightning_al.storage.run_folder import RunRefusedError


class QueryCLI(ActiveLearningCLI):
    """A `LightningCLI` with the keys of `fit`, whose `ckpt` is the file of the weights that score."""

    _replaced_arguments = ("ckpt",)
    _first_argument = 2  # behind `query`

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the keys of `fit`, so that it takes the same configurations, and the checkpoint."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--ckpt", type=str, help="A checkpoint, or a file with a plain state dict.")


def main() -> None:
    """Query with the arguments of the process, and print the dataset indices of the picks, one per line.

    Raises:
        RunRefusedError: If there is no acquisition, or no such checkpoint.

    """
    # a bar would stand between the picks where the output is a file
    cli = QueryCLI(run=False, trainer_defaults={"enable_progress_bar": False})
    if cli.config.acquisition is None or not Path(cli.config.ckpt or "").is_file():
        raise RunRefusedError(
            f"`query` needs an acquisition and a checkpoint, got `--ckpt {cli.config.ckpt}`: add `--config margin`, "
            "and `--ckpt` with the file of a trained model, such as `cycle-00/checkpoints/last.ckpt`."
        )
    load_weights(cli.model, cli.config.ckpt, trusted=cli.config.trust_checkpoints)
    picks = query(cli.model, cli.datamodule, cli.config_init.acquisition, cli.trainer)
    if cli.trainer.is_global_zero:
        print_line("\n".join(map(str, picks)))
    if cli.datamodule.pool_file is None:
        rank_zero_info("The picks are not stored. Pass `--data.pool_file`, so that the next query picks others.")
