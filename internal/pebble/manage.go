package pebble

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"strconv"
)

// A CertStatus is what Pebble knows of a certificate that it issued.
type CertStatus struct {
	Certificate *x509.Certificate
	Revoked     bool
	Reason      int // for the revocation, as in RFC 5280 section 5.3.1; 0 if none was given
}

// RootPEM returns the root certificates in PEM: the default chain's, then
// those of the alternate chains.
func (s *Server) RootPEM(ctx context.Context) ([]byte, error) {
	var all []byte
	for i := range 1 + s.config.AlternateRoots {
		root, err := s.manage(ctx, http.MethodGet, "/roots/"+strconv.Itoa(i), nil)
		if err != nil {
			return nil, err
		}
		all = append(all, root...)
	}
	return all, nil
}

// Roots returns a pool of all the root certificates.
func (s *Server) Roots(ctx context.Context) (*x509.CertPool, error) {
	data, err := s.RootPEM(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("pebble: no root certificates")
	}
	return pool, nil
}

// CertStatus returns what Pebble knows of the certificate with a serial
// number. The error for one that it does not know is fs.ErrNotExist.
func (s *Server) CertStatus(ctx context.Context, serial *big.Int) (*CertStatus, error) {
	data, err := s.manage(ctx, http.MethodGet, "/cert-status-by-serial/"+serial.Text(16), nil)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Status, Certificate string
		Reason              int
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("certificate status: %w", err)
	}
	block, _ := pem.Decode([]byte(answer.Certificate))
	if block == nil {
		return nil, errors.New("certificate status: no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate status: %w", err)
	}
	return &CertStatus{leaf, answer.Status == "Revoked", answer.Reason}, nil
}

// Certificates returns the certificates issued since the last Restart, the
// oldest first.
func (s *Server) Certificates(ctx context.Context) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, issued := range s.Issued() {
		serial, ok := new(big.Int).SetString(issued.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("certificate serial %q is no number", issued.Serial)
		}
		status, err := s.CertStatus(ctx, serial)
		if errors.Is(err, fs.ErrNotExist) {
			continue // issued by the Pebble before a restart
		}
		if err != nil {
			return nil, err
		}
		certs = append(certs, status.Certificate)
	}
	return certs, nil
}

// SetRenewalInfo replaces what Pebble answers to a question for the
// certificate's renewal information (RFC 9773). It may be malformed. The reply
// always has a Retry-After of six hours.
func (s *Server) SetRenewalInfo(ctx context.Context, leaf *x509.Certificate, answer string) error {
	body, err := json.Marshal(map[string]string{
		"certificate": string(encodeCert(leaf.Raw)),
		"ariResponse": answer,
	})
	if err != nil {
		return err
	}
	_, err = s.manage(ctx, http.MethodPost, "/set-renewal-info/", body)
	return err
}

// management returns the URL of a path of Pebble's management interface.
func (s *Server) management(path string) string {
	return "https://" + loopback(s.ports.management()) + path
}

// manage sends a request to Pebble's management interface and returns the
// reply's body.
func (s *Server) manage(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.management(path), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := s.Client().Do(req)
	if err != nil {
		return nil, fmt.Errorf("pebble management: %w", err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("pebble management: %w", err)
	}
	switch res.StatusCode {
	case http.StatusOK:
		return data, nil
	case http.StatusNotFound:
		return nil, fmt.Errorf("pebble management: %s: %w", path, fs.ErrNotExist)
	}
	return nil, fmt.Errorf("pebble management: %s: %s: %s", path, res.Status, data)
}
