"""Networks of nodes: a graph network trained on the nodes' labels, and ERASE, which corrects the labels on the way.

Members train on the subgraph that they induce: no feature, label or edge of another node is in what a model saw.
"""
