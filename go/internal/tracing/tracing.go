// Package tracing sends traces in OpenTelemetry's protocol, if the standard variables ask for it.
//
// Spans are made with the global tracer, which does nothing until Start has found a wish: OTEL_EXPORTER_OTLP_ENDPOINT or
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT. All else (headers, sampling, attributes, timeouts) the library reads from the
// standard variables itself.
package tracing

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	api "go.opentelemetry.io/otel/trace"

	"github.com/ollmlx/ollmlx/go/internal/version"
)

const name = "github.com/ollmlx/ollmlx"

// Start begins to send traces. Stop sends what is left.
func Start(ctx context.Context) (stop func(context.Context) error, err error) {
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("traces cannot be sent: %w", err)
	}
	// The variables win over what is set here.
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "ollmlx"), attribute.String("service.version", version.Version)),
		resource.WithHost(), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(res))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))
	return provider.Shutdown, nil
}

// Span begins a span; end it with End.
func Span(ctx context.Context, what string, attributes ...attribute.KeyValue) (context.Context, api.Span) {
	return otel.Tracer(name).Start(ctx, what, api.WithAttributes(attributes...))
}

// End ends a span with how what it stands for ended.
func End(span api.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}
