package errdefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestKindsMapToCodeAndStatus(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		kind error
		code codes.Code
		http int
	}{
		{"nil", nil, nil, codes.OK, 200},
		{"invalid", New(ErrInvalid, "x"), ErrInvalid, codes.InvalidArgument, 400},
		{"not found", New(ErrNotFound, "x"), ErrNotFound, codes.NotFound, 404},
		{"exists", New(ErrExists, "x"), ErrExists, codes.AlreadyExists, 409},
		{"unsupported", New(ErrUnsupported, "x"), ErrUnsupported, codes.Unimplemented, 400},
		{"busy", New(ErrBusy, "x"), ErrBusy, codes.ResourceExhausted, 503},
		{"unavailable", New(ErrUnavailable, "x"), ErrUnavailable, codes.Unavailable, 500},
		{"canceled", New(ErrCanceled, "x"), ErrCanceled, codes.Canceled, 499},
		{"too large", New(ErrTooLarge, "x"), ErrTooLarge, codes.OutOfRange, 413},
		{"precondition", New(ErrPrecondition, "x"), ErrPrecondition, codes.FailedPrecondition, 500},
		{"timeout", New(ErrTimeout, "x"), ErrTimeout, codes.DeadlineExceeded, 500},
		{"forbidden", New(ErrForbidden, "x"), ErrForbidden, codes.PermissionDenied, 403},
		{"unauthorized", New(ErrUnauthorized, "x"), ErrUnauthorized, codes.Unauthenticated, 401},
		{"internal", New(ErrInternal, "x"), ErrInternal, codes.Internal, 500},
		{"no kind", io.ErrUnexpectedEOF, ErrInternal, codes.Internal, 500},
		{"wrapped twice", fmt.Errorf("a: %w", fmt.Errorf("b: %w", ErrBusy)), ErrBusy, codes.ResourceExhausted, 503},
		{"context canceled", fmt.Errorf("a: %w", context.Canceled), ErrCanceled, codes.Canceled, 499},
		{"context deadline", context.DeadlineExceeded, ErrTimeout, codes.DeadlineExceeded, 500},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Kind(tt.err); got != tt.kind {
				t.Errorf("Kind: got %v, want %v", got, tt.kind)
			}
			if got := GRPCCode(tt.err); got != tt.code {
				t.Errorf("GRPCCode: got %v, want %v", got, tt.code)
			}
			if got := HTTPStatus(tt.err); got != tt.http {
				t.Errorf("HTTPStatus: got %d, want %d", got, tt.http)
			}
		})
	}
}

// Every code that gRPC knows becomes a kind whose HTTP status is an error, and its text is the message alone.
func TestFromGRPC(t *testing.T) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		err := FromGRPC(status.Error(code, "the message"))
		if err.Error() != "the message" {
			t.Errorf("%v: text is %q", code, err)
		}
		if !hasKind(err) || HTTPStatus(err) < 400 {
			t.Errorf("%v: kind %v, status %d", code, Kind(err), HTTPStatus(err))
		}
	}
	if err := FromGRPC(status.Error(codes.OK, "")); err != nil {
		t.Errorf("OK became %v", err)
	}
	if err := FromGRPC(io.EOF); err != io.EOF {
		t.Errorf("an error that is no status became %v", err)
	}
	known := New(ErrBusy, "busy")
	if err := FromGRPC(known); err != known {
		t.Errorf("an error of a kind became %v", err)
	}
}

func TestCodesRoundTrip(t *testing.T) {
	for _, m := range table {
		err := FromCode(m.code, "m")
		if !errors.Is(err, m.kind) {
			t.Errorf("%v: got kind %v, want %v", m.code, Kind(err), m.kind)
		}
	}
	if FromCode(codes.OK, "m") != nil {
		t.Error("OK is an error")
	}
	if err := FromCode(codes.Unavailable, ""); err.Error() == "" {
		t.Error("an empty message gives an empty error text")
	}
}

func TestNewWrapsItsCause(t *testing.T) {
	err := New(ErrInvalid, "read: %w", io.EOF)
	if err.Error() != "read: EOF" || !errors.Is(err, io.EOF) || !errors.Is(err, ErrInvalid) {
		t.Errorf("got %q, is EOF %v, is invalid %v", err, errors.Is(err, io.EOF), errors.Is(err, ErrInvalid))
	}
}

func TestWrapKeepsTextAndFirstKind(t *testing.T) {
	if Wrap(ErrInvalid, nil) != nil {
		t.Error("nil became an error")
	}
	err := Wrap(ErrUnavailable, io.EOF)
	if err.Error() != "EOF" || !errors.Is(err, ErrUnavailable) || !errors.Is(err, io.EOF) {
		t.Errorf("got %v of kind %v", err, Kind(err))
	}
	if Kind(Wrap(ErrInvalid, err)) != ErrUnavailable {
		t.Error("the first kind was replaced")
	}
}
