"""Our messages and services, generated from the .proto files beside this one by `make proto`; what is generated is not edited.

The base classes in *_pb2_grpc.py answer UNIMPLEMENTED for each method, as the generator has it. None of ours is left to
them: tests/unit/test_services_whole.py proves that every method is overridden.
"""
