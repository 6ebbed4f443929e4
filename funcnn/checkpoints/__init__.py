"""Runs on the disk: saved while they go on, resumed to the bit, verified to the byte."""

from funcnn.checkpoints.directories import Directory, directory
from funcnn.checkpoints.locks import RunLocked
from funcnn.checkpoints.manifests import CheckpointError
from funcnn.checkpoints.reading import Checkpoint, Verified, load, verify

__all__ = ["Checkpoint", "CheckpointError", "Directory", "RunLocked", "Verified", "directory", "load", "verify"]
