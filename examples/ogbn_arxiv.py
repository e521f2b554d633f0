"""ogbn-arxiv (169,343 papers, 40 subjects) in OGB's reference configuration, float32 and compressed side by side.

python examples/ogbn_arxiv.py --model sage --bits 2                   the real data, full batch, 10 runs
python examples/ogbn_arxiv.py --sparsify degree:0.5 --runs 3          trained on half of the edges
python examples/ogbn_arxiv.py --sampler neighbor --budget 200MiB      mini-batches, at most 200 MiB saved
python examples/ogbn_arxiv.py --synthetic 0.05 --epochs 20 --runs 1   a small generated stand-in, no download
torchrun --standalone --nproc-per-node 4 examples/ogbn_arxiv.py --sampler neighbor      four processes, a GPU each
"""

from graphlossy.train import Experiment, TrainConfig
from graphlossy.train.ogb import PrintEpochs, ogb_parser, ogb_settings, print_summary, run_script


def main():
    args = ogb_parser("ogbn-arxiv", __doc__).parse_args()
    # 3 layers of 256, BatchNorm, dropout 0.5, Adam at 0.01, 500 epochs, 10 runs, scored by OGB's Evaluator;
    # what the command line names takes the place of these.
    config = TrainConfig.from_preset("ogb", **ogb_settings(args))
    print_summary(Experiment(config, args.out).run(PrintEpochs()))


if __name__ == "__main__":
    run_script(main, without_data="without the data, try --synthetic 0.05: a generated stand-in")
