package tracing

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	api "go.opentelemetry.io/otel/trace"
)

// Request begins the span of an HTTP request, as a child of the client's span if it sent one. The returned function ends
// it with the route and the status.
func Request(r *http.Request, id string) (context.Context, func(route string, status int)) {
	ctx := otel.GetTextMapPropagator().Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, span := otel.Tracer(name).Start(ctx, r.Method, api.WithSpanKind(api.SpanKindServer))
	if !span.IsRecording() {
		return ctx, func(string, int) { span.End() }
	}
	span.SetAttributes(
		attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path),
		attribute.String("ollmlx.request.id", id))
	return ctx, func(route string, status int) {
		if route != "" {
			span.SetName(route)
			span.SetAttributes(attribute.String("http.route", route))
		}
		span.SetAttributes(attribute.Int("http.response.status_code", status))
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(status))
		}
		span.End()
	}
}
