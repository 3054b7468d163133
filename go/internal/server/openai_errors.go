package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"

	"github.com/ollama/ollama/openai"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

// fieldError is an error that one field of a request is to blame for.
type fieldError struct {
	field string
	err   error
}

func (e *fieldError) Error() string { return e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// badField refuses the value of a field; the text begins with the field's name.
func badField(field, format string, args ...any) error {
	return &fieldError{field, errdefs.New(errdefs.ErrInvalid, "%s "+format, append([]any{field}, args...)...)}
}

// unsupportedField refuses a field that asks for what is not offered.
func unsupportedField(field, remedy string) error { return unsupportedValue(field, "", remedy) }

// unsupportedValue refuses those values of a field that detail tells of.
func unsupportedValue(field, detail, remedy string) error {
	return &fieldError{field, errdefs.New(errdefs.ErrUnsupported, "%s%s is not supported: %s", field, detail, remedy)}
}

// refusedField is a field that a dialect knows and this server cannot honour.
type refusedField struct {
	name   string
	value  json.RawMessage
	remedy string
}

// refuse returns an error for the first of fields that has a value.
func refuse(fields []refusedField) error {
	for _, f := range fields {
		if present(f.value) {
			return unsupportedField(f.name, f.remedy)
		}
	}
	return nil
}

// present reports whether a field asks for anything: null, false and empty values do not.
func present(v json.RawMessage) bool {
	switch string(v) {
	case "", "null", "false", `""`, "[]", "{}":
		return false
	}
	return true
}

// openaiError is err in OpenAI's form.
func openaiError(err error) openai.ErrorResponse {
	out := openai.Error{Message: publicText(err), Type: "api_error"}
	status := errdefs.HTTPStatus(err)
	switch {
	case status == http.StatusNotFound:
		out.Type = "not_found_error"
	case status == http.StatusUnauthorized:
		out.Type = "authentication_error"
	case status == http.StatusForbidden:
		out.Type = "permission_error"
	case status >= 400 && status < errdefs.StatusClientClosedRequest:
		out.Type = "invalid_request_error"
	}
	var field *fieldError
	if errors.As(err, &field) {
		out.Param = field.field
	}
	return openai.ErrorResponse{Error: out}
}

// failOpenAI answers with an error in OpenAI's dialect.
func (s *Server) failOpenAI(w http.ResponseWriter, r *http.Request, err error) {
	status := errdefs.HTTPStatus(err)
	s.noteFailure(w, r, status, err)
	writeJSON(w, status, openaiError(err))
}

// readOpenAI decodes a request's body into v and names the field that has a wrong type.
func (s *Server) readOpenAI(w http.ResponseWriter, r *http.Request, v any) error {
	err := s.readJSON(w, r, v)
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) || wrong.Field == "" {
		return err
	}
	return badField(strings.TrimPrefix(wrong.Field, "openaiSampling."), "must be %s, got %s", typeName(wrong.Type), wrong.Value)
}

// typeName is what JSON calls a Go type.
func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	case reflect.Int, reflect.Int64:
		return "an integer"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	default:
		return "an object"
	}
}
