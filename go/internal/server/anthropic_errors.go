package server

import (
	"net/http"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// failAnthropic answers with an error in Anthropic's dialect.
func (s *Server) failAnthropic(w http.ResponseWriter, r *http.Request, err error) {
	status := errdefs.HTTPStatus(err)
	if status >= http.StatusInternalServerError {
		s.log.Error("request failed", "id", requestID(r.Context()), "path", r.URL.Path, "error", err)
	}
	writeJSON(w, status, anthropicErrorOf(r, err))
}

func anthropicErrorOf(r *http.Request, err error) anthropicError {
	return anthropicError{
		Type:      "error",
		Error:     anthropicErrorInfo{Type: anthropicErrorType(errdefs.HTTPStatus(err)), Message: err.Error()},
		RequestID: requestID(r.Context()),
	}
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
