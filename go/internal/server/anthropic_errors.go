package server

import (
	"errors"
	"net/http"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// failAnthropic answers with an error in Anthropic's dialect.
func (s *Server) failAnthropic(w http.ResponseWriter, r *http.Request, err error) {
	status := errdefs.HTTPStatus(err)
	s.logFailure(r, status, err)
	writeJSON(w, status, anthropicErrorOf(r, err))
}

// errThread refuses to hold a conversation. Told by its code, Anthropic's library sends all of it instead.
var errThread = unsupportedField("thread", "conversations are not kept here; send the whole one in messages")

func anthropicErrorOf(r *http.Request, err error) anthropicError {
	info := anthropicErrorInfo{Type: anthropicErrorType(errdefs.HTTPStatus(err)), Message: err.Error()}
	if errors.Is(err, errThread) {
		info.Details = &anthropicErrorDetails{"thread_unsupported_request"}
	}
	return anthropicError{Type: "error", Error: info, RequestID: requestID(r.Context())}
}

func anthropicErrorType(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "invalid_request_error"
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusNotFound:
		return "not_found_error"
	case http.StatusRequestEntityTooLarge:
		return "request_too_large"
	case http.StatusServiceUnavailable:
		return "overloaded_error"
	default:
		return "api_error"
	}
}
