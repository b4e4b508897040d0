"""The words that all rooms share: a layer, an image, a graph, an engine, a verdict. Standard library only."""
