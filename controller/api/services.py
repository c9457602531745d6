"""Every service of the API on a server, in one list."""

from __future__ import annotations

from typing import Any, Final

import grpc.aio
from cairn.controller.api.api_tokens import ApiTokenService
from cairn.controller.api.audits import AuditService
from cairn.controller.api.auth import AuthService
from cairn.controller.api.bindings import BindingService
from cairn.controller.api.cluster import ClusterService
from cairn.controller.api.core import Core
from cairn.controller.api.enrolment import EnrolmentService
from cairn.controller.api.events import EventService
from cairn.controller.api.identity import IdentityService
from cairn.controller.api.identity_providers import IdentityProviderService
from cairn.controller.api.images import ImageService
from cairn.controller.api.jobs import JobService
from cairn.controller.api.logins import LoginService
from cairn.controller.api.nodes import NodeService
from cairn.controller.api.ports import PortService
from cairn.controller.api.price_lists import PriceListService
from cairn.controller.api.projects import ProjectService
from cairn.controller.api.quotas import QuotaService
from cairn.controller.api.roles import RoleService
from cairn.controller.api.subnets import SubnetService
from cairn.controller.api.usage import UsageService
from cairn.controller.api.users import UserService
from cairn.controller.api.vms import VmService
from cairn.controller.api.volumes import VolumeService
from cairn.controller.api.vpcs import VpcService
from cairn.proto.v1 import (
    api_token_pb2_grpc,
    audit_pb2_grpc,
    auth_pb2_grpc,
    binding_pb2_grpc,
    cluster_pb2_grpc,
    event_pb2_grpc,
    identity_provider_pb2_grpc,
    image_pb2_grpc,
    job_pb2_grpc,
    login_pb2_grpc,
    node_pb2_grpc,
    port_pb2_grpc,
    price_list_pb2_grpc,
    project_pb2_grpc,
    quota_pb2_grpc,
    role_pb2_grpc,
    subnet_pb2_grpc,
    usage_pb2_grpc,
    user_pb2_grpc,
    vm_pb2_grpc,
    volume_pb2_grpc,
    vpc_pb2_grpc,
)

# (full name, what registers it, what makes it)
SERVICES: Final[tuple[tuple[str, Any, Any], ...]] = (
    ("cairn.v1.ProjectService", project_pb2_grpc.add_ProjectServiceServicer_to_server, ProjectService),
    ("cairn.v1.ImageService", image_pb2_grpc.add_ImageServiceServicer_to_server, ImageService),
    ("cairn.v1.VpcService", vpc_pb2_grpc.add_VpcServiceServicer_to_server, VpcService),
    ("cairn.v1.SubnetService", subnet_pb2_grpc.add_SubnetServiceServicer_to_server, SubnetService),
    ("cairn.v1.PortService", port_pb2_grpc.add_PortServiceServicer_to_server, PortService),
    ("cairn.v1.VolumeService", volume_pb2_grpc.add_VolumeServiceServicer_to_server, VolumeService),
    ("cairn.v1.VmService", vm_pb2_grpc.add_VmServiceServicer_to_server, VmService),
    ("cairn.v1.NodeService", node_pb2_grpc.add_NodeServiceServicer_to_server, NodeService),
    ("cairn.v1.JobService", job_pb2_grpc.add_JobServiceServicer_to_server, JobService),
    ("cairn.v1.EventService", event_pb2_grpc.add_EventServiceServicer_to_server, EventService),
    ("cairn.v1.QuotaService", quota_pb2_grpc.add_QuotaServiceServicer_to_server, QuotaService),
    ("cairn.v1.PriceListService", price_list_pb2_grpc.add_PriceListServiceServicer_to_server, PriceListService),
    ("cairn.v1.UserService", user_pb2_grpc.add_UserServiceServicer_to_server, UserService),
    ("cairn.v1.RoleService", role_pb2_grpc.add_RoleServiceServicer_to_server, RoleService),
    ("cairn.v1.BindingService", binding_pb2_grpc.add_BindingServiceServicer_to_server, BindingService),
    ("cairn.v1.ApiTokenService", api_token_pb2_grpc.add_ApiTokenServiceServicer_to_server, ApiTokenService),
    (
        "cairn.v1.IdentityProviderService",
        identity_provider_pb2_grpc.add_IdentityProviderServiceServicer_to_server,
        IdentityProviderService,
    ),
    ("cairn.v1.AuditService", audit_pb2_grpc.add_AuditServiceServicer_to_server, AuditService),
    ("cairn.v1.UsageService", usage_pb2_grpc.add_UsageServiceServicer_to_server, UsageService),
    ("cairn.v1.AuthService", auth_pb2_grpc.add_AuthServiceServicer_to_server, AuthService),
    ("cairn.v1.ClusterService", cluster_pb2_grpc.add_ClusterServiceServicer_to_server, ClusterService),
    ("cairn.v1.IdentityService", cluster_pb2_grpc.add_IdentityServiceServicer_to_server, IdentityService),
)


def add_services(server: grpc.aio.Server, core: Core) -> list[str]:
    """Register the API; return the names."""
    for _, register, service in SERVICES:
        register(service(core), server)
    return [name for name, _, _ in SERVICES]


def add_enrolment(server: grpc.aio.Server, core: Core) -> list[str]:
    """Register what has a port of its own, without client certificates: how one comes to a certificate or a token."""
    cluster_pb2_grpc.add_EnrolmentServiceServicer_to_server(EnrolmentService(core), server)
    login_pb2_grpc.add_LoginServiceServicer_to_server(LoginService(core), server)
    return ["cairn.v1.EnrolmentService", "cairn.v1.LoginService"]
