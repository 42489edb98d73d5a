"""What tests of images and deltas need: generated images, an in-process registry, faults on demand."""
