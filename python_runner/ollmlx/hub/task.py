"""The service Hub: calls of the library on threads."""

from __future__ import annotations

import grpc

from ollmlx.hub import accounts, architectures, client, repository
from ollmlx.runner.task import Task, run_blocking
from ollmlx.runner.v1 import hub_pb2 as pb
from ollmlx.runner.v1 import hub_pb2_grpc as pb_grpc


class HubTask(Task):
    """Answers the host's questions about the hub."""

    def add_services(self, server: grpc.aio.Server) -> None:
        client.set_up()
        pb_grpc.add_HubServicer_to_server(HubService(), server)


class HubService(pb_grpc.HubServicer):
    async def Inspect(self, request: pb.InspectRequest, context: grpc.aio.ServicerContext) -> pb.Repository:
        return await run_blocking(context, repository.inspect, request.repository, request.revision)

    async def Supports(
        self, request: pb.SupportsRequest, context: grpc.aio.ServicerContext
    ) -> pb.SupportsResponse:
        known = await run_blocking(
            context, architectures.supports, request.model_type, list(request.architectures)
        )
        return pb.SupportsResponse(supported=known, engine=architectures.engine())

    async def Search(self, request: pb.SearchRequest, context: grpc.aio.ServicerContext) -> pb.SearchResponse:
        models = await run_blocking(
            context, repository.search, request.query, request.limit or 20, request.mlx
        )
        return pb.SearchResponse(models=models)

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: grpc.aio.ServicerContext) -> pb.Account:
        return await run_blocking(context, accounts.whoami)

    async def Login(self, request: pb.LoginRequest, context: grpc.aio.ServicerContext) -> pb.Account:
        return await run_blocking(context, accounts.login, request.token)

    async def Logout(self, request: pb.LogoutRequest, context: grpc.aio.ServicerContext) -> pb.LogoutResponse:
        return await run_blocking(context, accounts.logout)
