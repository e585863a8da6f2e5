"""Devices and hosts: the mesh, the processes of a run, the compilation cache."""
