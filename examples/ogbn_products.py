"""ogbn-products (2,449,029 products, 61,859,140 pairs, 47 categories) in OGB's reference configuration.

Full-batch GraphSAGE of 3 x 256 keeps tens of gigabytes for its backward pass; compressed it keeps a fraction.

    python examples/ogbn_products.py --schemes compressed --bits 2           the real data, full batch, 10 runs
    python examples/ogbn_products.py --sampler neighbor --num-workers 4      15, 10, 5 neighbours of 1,024 nodes
    python examples/ogbn_products.py --sampler cluster --bits 2              Cluster-GCN, 15,000 METIS parts
    python examples/ogbn_products.py --sparsify degree:0.25 --eval-batch 200000
    python examples/ogbn_products.py --synthetic 0.01 --epochs 20 --runs 1   a small generated stand-in, no download
    torchrun --standalone --nproc-per-node 4 --max-restarts 3 examples/ogbn_products.py --sampler neighbor
"""

from graphlossy.train import Experiment, TrainConfig
from graphlossy.train.ogb import PrintEpochs, ogb_parser, ogb_settings, print_summary, run_script


def main():
    args = ogb_parser("ogbn-products", __doc__, models=("sage", "gcn", "gin", "gcn2")).parse_args()
    # 3 layers of 256 without BatchNorm, dropout 0.5, Adam at 0.01, 300 epochs, 10 runs. Sampled: 20 epochs at 0.003,
    # GraphSAINT 20 at 0.01, clusters 50 at 0.001. What the command line names takes the place of these.
    config = TrainConfig.from_preset("ogb", **ogb_settings(args))
    print_summary(Experiment(config, args.out).run(PrintEpochs()))


if __name__ == "__main__":
    run_script(main, without_data="without the data, try --synthetic 0.01: a generated stand-in")
