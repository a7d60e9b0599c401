"""Beside the data: a learning rate that counts tokens, shapes that are warmed up, and two measures of stability.

Read next: the stability measures are those of Li et al., `The Stability-Efficiency Dilemma
<https://arxiv.org/abs/2108.06084>`_ (section 3).
"""
