"""Equal parts."""


class IidPartitioner:
    def __init__(self, num_partitions):
        self.partitions = num_partitions
