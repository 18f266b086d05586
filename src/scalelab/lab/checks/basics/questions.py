"""The ten questions of the self-test: right answers, usual slips, and where to read what was missed.

The right answers are computed, as a reader would. The questions themselves stand in
labs/transformers/basics.ipynb; the chapter asks the same with other numbers.
Taught in book/transformers/basics.md.
"""

from __future__ import annotations

import math

from scalelab.lab.self_test import Place, Question, Slip

SHAPES = Place(
    section="Tensors and their shapes",
    anchor="basics-shapes",
    reading="Harris et al. 2020, Array programming with NumPy: https://doi.org/10.1038/s41586-020-2649-2",
)
PRICE = Place(
    section="What a model pays",
    anchor="basics-price",
    reading="MacKay 2003, Information Theory, Inference, and Learning Algorithms, chapter 2: "
    "https://www.inference.org.uk/mackay/itila/",
)
SOFTMAX = Place(
    section="From numbers to probabilities",
    anchor="basics-softmax",
    reading="Goodfellow, Bengio & Courville 2016, Deep Learning, section 6.2.2: "
    "https://www.deeplearningbook.org/",
)
WAY_BACK = Place(
    section="The way back",
    anchor="basics-backward",
    reading="Baydin et al. 2018, Automatic Differentiation in Machine Learning: a Survey: "
    "https://jmlr.org/papers/v18/17-468.html",
)
SUMS = Place(
    section="How large is a sum?",
    anchor="basics-variance",
    reading="Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural "
    "networks: https://proceedings.mlr.press/v9/glorot10a.html",
)
DOWNHILL = Place(
    section="Downhill",
    anchor="basics-descent",
    reading="Goh 2017, Why Momentum Really Works: https://distill.pub/2017/momentum/",
)

QUESTIONS = (
    Question(
        name="shape",
        topic="shape of a product",
        right=(8, 128, 384),
        place=SHAPES,
        slips=(
            Slip(answer=(8, 128, 96), remark="D is summed over, so it is gone; F takes its place"),
            Slip(answer=(8, 128, 96, 384), remark="D is summed over, so it is not in the result"),
            Slip(answer=(1024, 384), remark="the same numbers, but B and T stay two axes"),
        ),
    ),
    Question(
        name="operations",
        topic="operations of a product",
        right=2 * 8 * 128 * 96 * 384,
        place=SHAPES,
        slips=(
            Slip(answer=8 * 128 * 96 * 384, remark="that counts multiplications; each has an addition"),
            Slip(answer=2 * 128 * 96 * 384, remark="that is one of the 8 sequences"),
            Slip(answer=8 * 128 * 384, remark="that counts results; each takes 96 products"),
        ),
    ),
    Question(
        name="price",
        topic="price of a token in nats",
        right=math.log(50),
        place=PRICE,
        slips=(
            Slip(answer=math.log2(50), remark="that is in bits; nats take the natural logarithm"),
            Slip(answer=math.log10(50), remark="that takes the logarithm to base 10"),
            Slip(answer=-math.log(50), remark="the price is minus the logarithm, so above zero"),
        ),
    ),
    Question(
        name="bits",
        topic="nats into bits",
        right=1.2 / math.log(2),
        place=PRICE,
        slips=(
            Slip(answer=1.2 * math.log(2), remark="multiplied by ln 2; a nat is more than a bit, so divide"),
            Slip(answer=math.exp(1.2), remark="that is the perplexity"),
        ),
    ),
    Question(
        name="excess",
        topic="loss above the entropy",
        right=0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1),
        place=PRICE,
        slips=(
            Slip(
                answer=-0.5 * math.log(0.9) - 0.5 * math.log(0.1),
                remark="that is the whole cross-entropy; take the coin's own entropy, ln 2, off",
            ),
            Slip(
                answer=0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5),
                remark="the two distributions are swapped: the coin's probabilities are the weights",
            ),
            Slip(
                answer=0.5 * math.log2(0.5 / 0.9) + 0.5 * math.log2(0.5 / 0.1),
                remark="that is in bits",
            ),
        ),
    ),
    Question(
        name="gradient",
        topic="gradient at the logits",
        right=1 / 4 - 1,
        place=SOFTMAX,
        slips=(
            Slip(answer=3 / 4, remark="the sign: the gradient is p - y; a step downhill raises this logit"),
            Slip(answer=1 / 4, remark="that is p; at the target, 1 is taken off"),
            Slip(answer=3 / 16, remark="that is p(1 - p), the derivative of p and not of the loss"),
            Slip(answer=-3 / 16, remark="-p(1 - p): the logarithm's own factor 1/p is missing"),
        ),
    ),
    Question(
        name="chain",
        topic="chain rule",
        right=2 * (2 * 3 - 5) * 3,
        place=WAY_BACK,
        slips=(
            Slip(answer=2, remark="that is the derivative by y; w is multiplied by x = 3 on the way"),
            Slip(answer=4, remark="that is the derivative by x"),
            Slip(answer=3, remark="the factor 2 of the square is missing"),
        ),
    ),
    Question(
        name="way back",
        topic="cost of the way back",
        right=3.0,
        place=WAY_BACK,
        slips=(
            Slip(answer=2.0, remark="that is the way back alone; the way forward is to be added"),
            Slip(
                answer=4.0,
                remark="the way back takes two products for each one forward: by the weights, by the inputs",
            ),
        ),
    ),
    Question(
        name="spread",
        topic="spread of a sum",
        right=math.sqrt(400),
        place=SUMS,
        slips=(
            Slip(answer=400, remark="that is the variance; the standard deviation is its root"),
            Slip(answer=1, remark="variances add up: 400 of them, each 1"),
            Slip(answer=1 / 20, remark="that is the spread of the mean, not of the sum"),
        ),
    ),
    Question(
        name="rate",
        topic="largest stable rate",
        right=2 / 100,
        place=DOWNHILL,
        slips=(
            Slip(answer=1 / 100, remark="the middle of the valley in one step; up to twice that holds"),
            Slip(answer=2, remark="the flat direction would bear that; the steep one does not"),
            Slip(answer=200, remark="2 times the curvature; the limit is 2 divided by it"),
        ),
    ),
)
