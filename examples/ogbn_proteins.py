"""ogbn-proteins (132,534 proteins, 39,561,252 pairs, 112 yes-or-no functions) in OGB's reference configuration.

A dense graph (597 neighbours on average), where thinning the edges pays most. The features of a node are the mean of
its edges' features; the score is the mean ROC-AUC of the 112 tasks.

    python examples/ogbn_proteins.py --model sage                           the real data, full batch, 10 runs
    python examples/ogbn_proteins.py --sparsify degree:0.1 --bits 2         a tenth of the edges, 2 bits a number
    python examples/ogbn_proteins.py --synthetic 0.01 --epochs 20 --runs 1  a small generated stand-in, no download
    torchrun --standalone --nproc-per-node 4 examples/ogbn_proteins.py --sampler saint-node --eval-batch 20000
"""

from graphlossy.train import Experiment, TrainConfig
from graphlossy.train.ogb import PrintEpochs, ogb_parser, ogb_settings, print_summary, run_script


def main():
    args = ogb_parser("ogbn-proteins", __doc__, models=("sage", "gcn", "gin", "gcn2")).parse_args()
    # 3 layers of 256 without BatchNorm or dropout, Adam at 0.01, 1,000 epochs, evaluated every 5, 10 runs, binary cross
    # entropy over all tasks; what the command line names takes the place of these.
    config = TrainConfig.from_preset("ogb", **ogb_settings(args))
    print_summary(Experiment(config, args.out).run(PrintEpochs()))


if __name__ == "__main__":
    run_script(main, without_data="without the data, try --synthetic 0.01: a generated stand-in")
