"""What we use of etcd's v3 API, generated from the .proto files beside this one by `make proto`; that is not edited by hand.

We are etcd's client only: the base classes for servers in rpc_pb2_grpc.py, which answer UNIMPLEMENTED for each method,
come with the stubs and have no subclass.
"""
