package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// failAnthropic answers with an error in Anthropic's dialect.
func (s *Server) failAnthropic(w http.ResponseWriter, r *http.Request, err error) {
	status := errdefs.HTTPStatus(err)
	s.noteFailure(w, r, status, err)
	writeJSON(w, status, anthropicErrorOf(r, err))
}

// errThread refuses to hold a conversation. Told by its code, Anthropic's library sends all of it instead.
var errThread = unsupportedField("thread", "conversations are not kept here; send the whole one in messages")

func anthropicErrorOf(r *http.Request, err error) anthropicError {
	info := anthropicErrorInfo{Type: anthropicErrorType(errdefs.HTTPStatus(err)), Message: publicText(err)}
	if errors.Is(err, errThread) {
		info.Details = &anthropicErrorDetails{"thread_unsupported_request"}
	}
	return anthropicError{Type: "error", Error: info, RequestID: requestID(r.Context())}
}

// misfit says which value at a place of a request has the wrong type; at is empty for the whole of it. An error of
// another sort stays what it is.
func misfit(at string, err error) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return errdefs.Wrap(errdefs.ErrInvalid, err)
	}
	place := strings.Trim(at+"."+wrong.Field, ".")
	if place == "" {
		place = "the request"
	}
	return errdefs.New(errdefs.ErrInvalid, "%s must be %s, got %s", place, typeName(wrong.Type), wrong.Value)
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
