"""What a training would need, found out before there is a device: ``--mode=plan``.

The compilers of TPU and GPU run on any CPU. So the very programs that training runs are compiled for a topology that is
not there, and asked for memory and communication; FLOPs, bytes and time follow from the model's shape.
"""
