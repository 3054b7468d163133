// Package errdefs defines the kinds of errors that ollmlx tells apart.
//
// A kind is a sentinel that other errors wrap; errors.Is(err, kind) asks for it. One table maps each kind to its gRPC
// code (the boundary to a runner) and to its HTTP status (the boundary to a client), so that no other package decides
// on either. An error of no kind counts as ErrInternal.
package errdefs

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The kinds of errors.
var (
	// ErrInvalid: the request itself is wrong; repeating it unchanged is useless.
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound: what the request names does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists: what the request would make exists already.
	ErrExists = errors.New("already exists")
	// ErrUnsupported: the request is right, but the model or this build cannot do it.
	ErrUnsupported = errors.New("not supported")
	// ErrBusy: there is no room now; the same request may succeed later.
	ErrBusy = errors.New("server busy")
	// ErrUnavailable: what serves the request is gone, for example a runner that died.
	ErrUnavailable = errors.New("unavailable")
	// ErrCanceled: whoever made the request gave it up.
	ErrCanceled = errors.New("canceled")
	// ErrTooLarge: the request is bigger than its bound.
	ErrTooLarge = errors.New("too large")
	// ErrPrecondition: the system is in no state to do this, and waiting does not change it.
	ErrPrecondition = errors.New("failed precondition")
	// ErrTimeout: something did not happen within its time.
	ErrTimeout = errors.New("timed out")
	// ErrUnauthorized: the caller has not shown who it is.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrForbidden: the caller may not do this.
	ErrForbidden = errors.New("forbidden")
	// ErrInternal: a fault in ollmlx; also what an error without a kind counts as.
	ErrInternal = errors.New("internal error")
)

// StatusClientClosedRequest is the status of a request whose client has gone; no client ever sees it, but logs do.
const StatusClientClosedRequest = 499

type mapping struct {
	kind error
	code codes.Code
	http int
}

// table is searched from the top in both directions: the first row with a code is the kind that the code becomes.
// A dead runner is 500 and not 503 because that is what Ollama answers and what clients retry on.
var table = []mapping{
	{ErrCanceled, codes.Canceled, StatusClientClosedRequest},
	{ErrInvalid, codes.InvalidArgument, http.StatusBadRequest},
	{ErrNotFound, codes.NotFound, http.StatusNotFound},
	{ErrExists, codes.AlreadyExists, http.StatusConflict},
	{ErrUnsupported, codes.Unimplemented, http.StatusBadRequest},
	{ErrBusy, codes.ResourceExhausted, http.StatusServiceUnavailable},
	{ErrTooLarge, codes.OutOfRange, http.StatusRequestEntityTooLarge},
	{ErrPrecondition, codes.FailedPrecondition, http.StatusInternalServerError},
	{ErrTimeout, codes.DeadlineExceeded, http.StatusInternalServerError},
	{ErrForbidden, codes.PermissionDenied, http.StatusForbidden},
	{ErrUnauthorized, codes.Unauthenticated, http.StatusUnauthorized},
	{ErrUnavailable, codes.Unavailable, http.StatusInternalServerError},
	{ErrUnavailable, codes.Aborted, http.StatusInternalServerError},
	{ErrInternal, codes.Internal, http.StatusInternalServerError},
	{ErrInternal, codes.Unknown, http.StatusInternalServerError},
	{ErrInternal, codes.DataLoss, http.StatusInternalServerError},
}

// kindError is an error whose text is its own and whose kind is known.
type kindError struct {
	kind error
	err  error
}

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }

// New returns an error of a kind whose text is the formatted message alone; %w in the format wraps as in fmt.Errorf.
func New(kind error, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}

// Wrap gives err a kind and keeps its text. Of nil it makes nil, and an error that has a kind keeps it.
func Wrap(kind, err error) error {
	if err == nil || hasKind(err) {
		return err
	}
	return &kindError{kind: kind, err: err}
}

// Kind returns the sentinel that err is of; ErrInternal if it has none, nil for nil.
func Kind(err error) error {
	if err == nil {
		return nil
	}
	return find(err).kind
}

// HTTPStatus returns the status with which an HTTP response tells of err: 200 for nil.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	return find(err).http
}

// GRPCCode returns the code with which a gRPC response tells of err: OK for nil.
func GRPCCode(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return find(err).code
}

// FromGRPC turns the error of a gRPC call into one of a kind whose text is the status message alone, so that users do
// not read "rpc error: code = ...". Errors that are no gRPC status are returned as they are.
func FromGRPC(err error) error {
	if err == nil || hasKind(err) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	return FromCode(st.Code(), st.Message())
}

// FromCode returns the error that a gRPC code and its message stand for: nil for OK.
func FromCode(code codes.Code, msg string) error {
	if code == codes.OK {
		return nil
	}
	kind := ErrInternal
	for _, m := range table {
		if m.code == code {
			kind = m.kind
			break
		}
	}
	if msg == "" {
		msg = kind.Error()
	}
	return &kindError{kind: kind, err: errors.New(msg)}
}

func find(err error) mapping {
	for _, m := range table {
		if errors.Is(err, m.kind) {
			return m
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return find(ErrCanceled)
	case errors.Is(err, context.DeadlineExceeded):
		return find(ErrTimeout)
	}
	return find(ErrInternal)
}

func hasKind(err error) bool {
	for _, m := range table {
		if errors.Is(err, m.kind) {
			return true
		}
	}
	return false
}
